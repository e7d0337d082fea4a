"""`compact-edge build`: the pipeline, what it publishes, and the reports of its parts."""
