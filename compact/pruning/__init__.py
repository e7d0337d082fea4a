"""From options to a pruned checkpoint: ranking, sizes, scores, plan, apply."""
