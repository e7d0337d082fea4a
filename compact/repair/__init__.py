"""`--method repair`: `down_proj` fitted to the original output by least squares."""
