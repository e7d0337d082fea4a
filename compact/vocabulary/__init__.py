"""Tokenizers: reading and pruning them, the scripts and languages of their tokens, and the use of each token."""
