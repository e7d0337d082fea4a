"""The report of a run: report.json and what is rendered from it."""
