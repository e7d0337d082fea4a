"""The parity gate's check that the chat templates of the GGUF are those that Transformers uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compact.vocabulary.chat_rendering import CONVERSATIONS, probe, render_chats
from compact.vocabulary.chat_templates import DEFAULT, plain_lines, read_chat_templates
from compact.vocabulary.loading import load_tokenizer
from exporters.gate import Check
from exporters.llamacpp.engine import LlamaEngine

_KEY = "tokenizer.chat_template"


def check_chat(checkpoint: Path, tokenizer: Any, engine: LlamaEngine, unpruned: Path | None) -> list[Check]:
    """Compare the chat templates of a GGUF, its checkpoint and the source, and the conversations that they render.

    llama.cpp passes only the texts of BOS and EOS to a template. If a template prints other special tokens, the
    rendered texts differ. The check reports this and does not fail.

    Args:
        checkpoint: the checkpoint that the GGUF was exported from.
        tokenizer: its tokenizer in Transformers.
        engine: the open GGUF.
        unpruned: checkpoint of the source; None if `checkpoint` is unpruned.

    Returns:
        The check `chat`, or an empty list if there is no template.
    """
    expected, found = templates_of(tokenizer), _templates_in(engine.metadata)
    if not expected and not found:
        return []
    figures: dict[str, Any] = {"templates": len(expected), "conversations": 0}
    if found != expected:
        names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        return [
            Check("chat", False, f"chat templates of the GGUF and of Transformers differ: {', '.join(names)}", figures)
        ]
    source = checkpoint if unpruned is None else unpruned
    if read_chat_templates(source) != expected:
        return [Check("chat", False, "chat templates of the source and of the checkpoint differ", figures)]
    if DEFAULT not in expected:
        return [Check("chat", True, f"{len(expected)} named templates equal; none is the default", figures)]
    template = expected[DEFAULT]
    own = tokenizer if unpruned is None else load_tokenizer(unpruned)
    in_source = probe(source, template, str(source), own)[: len(CONVERSATIONS)]
    in_llamacpp = render_chats(
        found[DEFAULT], _variables(engine), CONVERSATIONS, str(source), add_generation_prompt=True
    )
    compared, llamacpp_differs = 0, False
    for messages, before, after in zip(CONVERSATIONS, in_source, in_llamacpp, strict=True):
        if before.text is None:  # the template refuses this conversation
            continue
        compared += 1
        # The child process has just rendered this conversation, so Transformers can do so without limits.
        text = tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
        if text != before.text and "strftime_now" not in template:
            return [Check("chat", False, _difference(text, before.text, "the source"), figures)]
        llamacpp_differs = llamacpp_differs or after.text != text
    figures["conversations"] = compared
    if llamacpp_differs:
        detail = "the template prints special tokens other than BOS and EOS, which llama.cpp does not pass to it"
        return [Check("chat", None, detail, figures)]
    if not compared:
        return [
            Check("chat", None, f"the template refuses the conversations of the gate ({in_source[0].error})", figures)
        ]
    return [Check("chat", True, f"{len(expected)} templates equal, {compared} conversations rendered alike", figures)]


def templates_of(tokenizer: Any) -> dict[str, str]:
    """Return name -> chat template of a tokenizer of Transformers. Empty templates are left out."""
    own = getattr(tokenizer, "chat_template", None)
    named = own if isinstance(own, Mapping) else {} if own is None else {DEFAULT: own}
    return {str(name): plain_lines(template) for name, template in named.items() if template.strip()}


def _templates_in(metadata: Mapping[str, str]) -> dict[str, str]:
    named = {key.removeprefix(f"{_KEY}."): text for key, text in metadata.items() if key.startswith(f"{_KEY}.")}
    return named | ({DEFAULT: metadata[_KEY]} if _KEY in metadata else {})


def _variables(engine: LlamaEngine) -> dict[str, str]:
    """Return the variables that llama.cpp passes to a template: the texts of BOS and EOS, if the file names them."""
    ids = {role: engine.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos")}
    return {
        f"{role}_token": engine.detokenize([int(token)]).decode("utf-8", "replace")
        for role, token in ids.items()
        if token is not None
    }


def _difference(text: str, other: str, of: str) -> str:
    at = next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return f"the prompt is {text[at : at + 30]!r} at character {at}, {of} has {other[at : at + 30]!r}"
