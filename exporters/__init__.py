"""Export formats: one module a format, and the parity check that every artifact goes through."""
