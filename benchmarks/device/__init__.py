"""The on-device bench, and how far its figures can be trusted."""
