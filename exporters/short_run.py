"""A short run on this machine: the same text for both variants of a model, in each one's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.files import read_json_object
from compact.checkpoints.names import CONFIG
from compact.vocabulary.tokenizer import bos_id, encode, load_tokenizer
from exporters.llamacpp.engine import Speed

SPEED_PROMPT_TOKENS = 256
SPEED_DECODE_TOKENS = 64
# The median run by decode time is reported: one run alone is at the mercy of whatever else the machine does.
SPEED_RUNS = 3
REPLY_TOKENS = 120


@dataclass(frozen=True)
class ShortRun:
    """What a short run feeds.

    Attributes:
        tokenizer: the checkpoint's.
        ids: the prompt of the speed runs.
        decode_tokens: tokens after it.
        context: positions that the runtime is opened with.
        characters_per_token: of the whole text.
    """

    tokenizer: Any
    ids: Sequence[int]
    decode_tokens: int
    context: int
    characters_per_token: float

    def speed(self, run: Callable[[Sequence[int], int], Speed]) -> Speed:
        """The median of a few runs by decode time."""
        runs = [run(self.ids, self.decode_tokens) for _ in range(SPEED_RUNS)]
        return sorted(runs, key=lambda speed: speed.decode_seconds)[SPEED_RUNS // 2]

    @property
    def reply_tokens(self) -> int:
        """Most tokens of a reply."""
        return min(REPLY_TOKENS, self.context // 2)

    def prompt(self, prompt: str) -> list[int]:
        """The ids of a prompt, its end where it is long."""
        return prompt_ids(self.tokenizer, prompt)[-(self.context - self.reply_tokens) :]


def short_run(checkpoint: Path, text: str) -> ShortRun:
    """Prepare a short run on the evaluation text."""
    tokenizer = load_tokenizer(checkpoint)
    ids = encode(tokenizer, [text], add_special_tokens=False)[0]
    config = read_json_object(checkpoint / CONFIG)
    context = min(1024, int(config.get("max_position_embeddings") or 1024))
    decode_tokens = min(SPEED_DECODE_TOKENS, context // 2)
    # onnxruntime-genai wants room for the token that follows the last one fed.
    prompt_tokens = min(SPEED_PROMPT_TOKENS, len(ids), context - decode_tokens - 1)
    return ShortRun(tokenizer, ids[:prompt_tokens], decode_tokens, context, len(text) / len(ids))


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt through the chat template where the model has one, else as plain text."""
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        return encode(tokenizer, [text], add_special_tokens=False)[0]
    bos = bos_id(tokenizer)
    return [*([] if bos is None else [bos]), *encode(tokenizer, [prompt], add_special_tokens=False)[0]]
