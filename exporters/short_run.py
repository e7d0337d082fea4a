"""A short speed run on this machine. Both variants of a model get the same text, each in its own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.files import read_json_object
from compact.checkpoints.names import CONFIG
from compact.vocabulary.chat_rendering import render_chats, special_of, template_of
from compact.vocabulary.tokenizer import bos_id, encode, load_tokenizer
from exporters.llamacpp.engine import Speed

SPEED_PROMPT_TOKENS = 256
SPEED_DECODE_TOKENS = 64
# Report the median run by decode time, because other processes can disturb a single run.
SPEED_RUNS = 3
REPLY_TOKENS = 120


@dataclass(frozen=True)
class ShortRun:
    """The inputs of a short run.

    Attributes:
        tokenizer: tokenizer of the checkpoint.
        ids: token ids of the prompt for the speed runs.
        decode_tokens: number of tokens to generate after the prompt.
        context: context length of the runtime, in positions.
        characters_per_token: average over the whole text.
    """

    tokenizer: Any
    ids: Sequence[int]
    decode_tokens: int
    context: int
    characters_per_token: float

    def speed(self, run: Callable[[Sequence[int], int], Speed]) -> Speed:
        """Measure the speed a few times and return the median run by decode time."""
        runs = [run(self.ids, self.decode_tokens) for _ in range(SPEED_RUNS)]
        return sorted(runs, key=lambda speed: speed.decode_seconds)[SPEED_RUNS // 2]

    @property
    def reply_tokens(self) -> int:
        """Maximum number of tokens in a reply."""
        return min(REPLY_TOKENS, self.context // 2)

    def prompt(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt. If it is too long, keep only its end."""
        return prompt_ids(self.tokenizer, prompt)[-(self.context - self.reply_tokens) :]


def short_run(checkpoint: Path, text: str) -> ShortRun:
    """Prepare a short run on the evaluation text."""
    tokenizer = load_tokenizer(checkpoint)
    ids = encode(tokenizer, [text], add_special_tokens=False)[0]
    config = read_json_object(checkpoint / CONFIG)
    context = min(1024, int(config.get("max_position_embeddings") or 1024))
    decode_tokens = min(SPEED_DECODE_TOKENS, context // 2)
    # onnxruntime-genai needs room for one more token after the last input token.
    prompt_tokens = min(SPEED_PROMPT_TOKENS, len(ids), context - decode_tokens - 1)
    return ShortRun(tokenizer, ids[:prompt_tokens], decode_tokens, context, len(text) / len(ids))


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the token ids of a prompt: as a chat if the model has a template that accepts it, otherwise as text."""
    if (template := template_of(tokenizer)) is not None:
        messages = [{"role": "user", "content": prompt}]
        place = str(tokenizer.name_or_path)
        (chat,) = render_chats(template, special_of(tokenizer), [messages], place, add_generation_prompt=True)
        if chat.text is not None:
            return encode(tokenizer, [chat.text], add_special_tokens=False)[0]
    bos = bos_id(tokenizer)
    return [*([] if bos is None else [bos]), *encode(tokenizer, [prompt], add_special_tokens=False)[0]]
