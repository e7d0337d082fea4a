"""Output for a person: console, plots and tables."""
