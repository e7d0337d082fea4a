"""Export formats, one room per format, and the parity gate that checks every artifact."""
