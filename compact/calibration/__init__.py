"""The calibration set, and the text that is held out of it."""
