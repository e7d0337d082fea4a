"""Recover quality after pruning: train the pruned model with the unpruned one as teacher (`--recover distill`)."""
