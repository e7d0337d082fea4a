"""Tables of the docs that need no measurement."""
