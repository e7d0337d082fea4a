"""Recovering what a cut broke: the unpruned model teaches the pruned one on plain text (`--recover distill`)."""
