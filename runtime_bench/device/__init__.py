"""A device: facts about it, and readings while a program runs there."""
