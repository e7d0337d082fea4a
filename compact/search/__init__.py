"""Search for the best sizes: `--fit` and `--split auto`."""
