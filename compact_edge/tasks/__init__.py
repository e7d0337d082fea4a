"""`compact-edge eval`: accuracy on tasks, and one model against another."""
