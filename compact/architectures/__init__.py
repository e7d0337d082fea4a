"""The family table: names, shapes and settings of every architecture, and the table of published models."""
