"""The host side of compact-edge: sources, pruning plans, pruned checkpoints, evaluation."""
