"""The prompts of a run: the same text for both sides, chat template applied.

A file of prompts is JSONL. Each line is `{"name": ..., "text": ...}` or
`{"name": ..., "messages": [{"role", "content"}, ...]}`. The built-in ones (`prompts.jsonl`) are a short question, a
long document, code, and a chat of several turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from compact.base.errors import DataError, ModelNotFoundError
from compact.vocabulary.chat_rendering import SECONDS, ChatRenderer
from runtime_bench.bench_artifact import BenchArtifact

BUILT_IN = Path(__file__).with_name("prompts.jsonl")
_LARGEST_FILE = 16 << 20
_MOST_PROMPTS = 64
_HINT = 'each line is {"name": ..., "text": ...} or {"name": ..., "messages": [...]}'
RENDER_SECONDS = SECONDS
# A template that prints the date must give the same prompt every day.
_DAY = date(2025, 1, 1)
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """One prompt before the chat template: `messages`, or a plain `text`."""

    name: str
    text: str | None
    messages: tuple[Mapping[str, str], ...]


def read_prompts(path: Path = BUILT_IN) -> tuple[Conversation, ...]:
    """Read a file of prompts. Raises ModelNotFoundError and DataError."""
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such prompts file", _HINT)
    if path.stat().st_size > _LARGEST_FILE:
        raise DataError(f"{path}: larger than {_LARGEST_FILE >> 20} MiB", "give shorter prompts")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text", "save the file as UTF-8") from error
    found: dict[str, Conversation] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            conversation = _conversation(line, f"{path}:{number}")
            if conversation.name in found:
                raise DataError(f"{path}:{number}: a second prompt named {conversation.name!r}", "use unique names")
            found[conversation.name] = conversation
    if not 1 <= len(found) <= _MOST_PROMPTS:
        raise DataError(f"{path}: {len(found)} prompts; expected 1 to {_MOST_PROMPTS}", _HINT)
    return tuple(found.values())


def render(conversations: Sequence[Conversation], artifact: BenchArtifact) -> dict[str, str]:
    """Render each prompt with the artifact's chat template.

    A model without a chat template gets the texts of the messages, separated by empty lines. BOS stays where the
    template puts it.

    Returns:
        Name -> text for the engine.

    Raises:
        DataError: the template cannot be rendered, or takes too long.
        ToolUnavailableError: the packages that render templates are not installed.
    """
    texts = {c.name: c.text for c in conversations if c.text is not None}
    chats = [c for c in conversations if c.text is None]
    if artifact.chat_template is None:
        texts |= {c.name: "\n\n".join(message["content"] for message in c.messages) for c in chats}
    elif chats:
        rendered = _through_template([[dict(m) for m in c.messages] for c in chats], artifact.chat_template, artifact)
        texts |= {c.name: text for c, text in zip(chats, rendered, strict=True)}
    return {c.name: texts[c.name] for c in conversations}


def _through_template(conversations: list[list[dict[str, str]]], template: str, artifact: BenchArtifact) -> list[str]:
    hint = "give plain texts with --prompts"
    subject = f"{artifact.name}: its chat template"
    with ChatRenderer(
        template, artifact.special, subject, day=_DAY.isoformat(), seconds=RENDER_SECONDS, hint=hint
    ) as renderer:
        rendered = renderer.render(conversations, add_generation_prompt=True, date_string=_DAY.strftime("%d %b %Y"))
    texts = [each.text for each in rendered if each.text is not None]
    if len(texts) < len(rendered):
        error = next(each.error for each in rendered if each.text is None)
        raise DataError(f"{subject} rejects the prompts ({error})", hint)
    return texts


def reference_text(conversations: Sequence[Conversation]) -> str:
    """Return the text on which characters per token are counted: all prompts without a template."""
    parts = []
    for conversation in conversations:
        parts += [conversation.text] if conversation.text is not None else []
        parts += [message["content"] for message in conversation.messages]
    return "\n\n".join(parts)


def _conversation(line: str, where: str) -> Conversation:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a line of JSON", _HINT) from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object", _HINT)
    name, text, messages = value.get("name"), value.get("text"), value.get("messages")
    if not isinstance(name, str) or not name or len(name) > 40 or not name.isprintable():
        raise DataError(f"{where}: name must be printable text of 1 to 40 characters", _HINT)
    if (text is None) == (messages is None):
        raise DataError(f"{where}: needs either text or messages", _HINT)
    if text is not None:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: text must be a non-empty string", _HINT)
        return Conversation(name, text, ())
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise DataError(f"{where}: messages must be objects with role ({', '.join(_ROLES)}) and content", _HINT)
    return Conversation(name, None, tuple({key: message[key] for key in ("role", "content")} for message in messages))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in _ROLES and isinstance(value.get("content"), str)
