"""Texts from files, and the text that every machine with CPython has."""
