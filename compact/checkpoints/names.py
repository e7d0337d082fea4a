"""Names of the files of a Hugging Face checkpoint directory."""

from __future__ import annotations

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
