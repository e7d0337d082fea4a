"""`compact-edge build`: the pipeline, its published folders, and its reports."""
