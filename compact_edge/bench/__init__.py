"""`compact-edge bench`: the plan, the pipeline and the summary."""
