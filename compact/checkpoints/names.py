"""Names of the files of a Hugging Face checkpoint directory."""

from __future__ import annotations

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
# The vocabulary of SentencePiece.
TOKENIZER_MODEL = "tokenizer.model"
CHAT_TEMPLATE = "chat_template.jinja"
# The folder of the chat templates that have names.
NAMED_TEMPLATES = "additional_chat_templates"
# The small files that the id of a source depends on. added_tokens.json is added if Transformers takes tokens from it.
SMALL_FILES = (
    *(CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG),
    *(TOKENIZER_MODEL, CHAT_TEMPLATE, SPECIAL_TOKENS_MAP),
)
