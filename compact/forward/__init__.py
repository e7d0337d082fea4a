"""Running a model: loading it whole or layer by layer, and its bits per byte on a text."""
