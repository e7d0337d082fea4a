"""Bits per byte and task accuracy, before and after pruning."""
