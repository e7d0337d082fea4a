"""The search of sizes: `--fit` and `--split auto`."""
