"""Command lines that run a GGUF, for the model card and the summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compact.base.files import read_json_object
from compact.checkpoints.names import CONFIG
from exporters.card import has_chat_template

# Maximum context in the card's command. Without a limit, llama.cpp allocates memory for the model's full context.
_CARD_CONTEXT = 4096


def card_lines(names: Sequence[str], checkpoint: Path, title: str, *, modelfile: bool) -> list[str]:
    """Return lines that run the file in its own folder.

    Args:
        names: the file, or its parts. The one to open comes first.
        checkpoint: the checkpoint that the file was made from.
        title: name of the file without its ending.
        modelfile: whether there is a Modelfile for Ollama.
    """
    positions = int(read_json_object(checkpoint / CONFIG).get("max_position_embeddings") or _CARD_CONTEXT)
    lines = [f"llama-cli -m {names[0]} -c {min(positions, _CARD_CONTEXT)} {chat_mode(checkpoint)}"]
    if modelfile:
        if len(names) > 1:
            lines.append(f"llama-gguf-split --merge {names[0]} {title}.gguf")
        lines.append("ollama create NAME -f Modelfile")
    return lines


def chat_mode(checkpoint: Path) -> str:
    """Return the options of `llama-cli` for a chat, or for plain text if the model has no chat template."""
    return "-cnv" if has_chat_template(checkpoint) else "-no-cnv -p 'Once upon a time'"
