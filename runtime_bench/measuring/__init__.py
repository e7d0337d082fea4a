"""The measuring loop: prompts, metrics and statistics."""
