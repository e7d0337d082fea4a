"""`compact-edge inspect` and `curve`: where the parameters are, and what sizes cost."""
