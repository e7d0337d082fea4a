"""Text that the model writes itself: samples at temperature 1, from its first token and from its chat template.

Such text is spread as the model expects text to be, needs no file and no network, and shows the special tokens in their
places. Half of the rows of a batch begin as a document does, the other half at a user's turn, so that the model writes
the question and the answer. A row whose text is over begins another one in its place (the mask hides what was there
before), so that every step of the batch is used.
"""

from __future__ import annotations

import inspect
import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.cache import Cache
from compact.errors import CalibrationError
from compact.progress import SILENT, Progress
from compact.store import read_json_object, sha256_json, write_text
from compact.tokenizer import bos_id, encode, load_tokenizer

if TYPE_CHECKING:
    import torch

# Positions of a sample. Every step of a batch reads all that was written before it, so long samples are slow ones.
SAMPLE_LENGTH = 256
# Texts written at a time; on two CPU cores 64 rows give more tokens a second than 32 and than 128.
_BATCH_SIZE = 64
# A shorter text is what a row had place for at its end, or an end without a text.
_FEWEST_TOKENS = 8
# A user's turn that does not end is ended after this share of the positions.
_USER_SHARE = 4
# Where a document begins in models that put nothing before a text: between documents they were trained on this.
_BETWEEN_DOCUMENTS = "<|endoftext|>"
# Stands for the user's words in the chat template.
_MARK = "\ue000"
_FILE = "samples.jsonl"
# Raised when other texts come out for equal inputs.
_VERSION = 1


def sample_texts(
    model_dir: Path,
    n_tokens: int,
    *,
    sequence_length: int = SAMPLE_LENGTH,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = _BATCH_SIZE,
    cache: Cache | None = None,
    source_id: str | None = None,
    progress: Progress = SILENT,
) -> list[str]:
    """Texts by the model that hold at least `n_tokens` tokens, the same for equal arguments on one machine.

    More tokens are the same texts and further ones. Special tokens stand in the texts as text; what the tokenizer puts
    before every text (BOS) does not.

    Args:
        model_dir: the checkpoint.
        n_tokens: tokens of all texts, as its tokenizer counts them.
        sequence_length: the longest text, in tokens; at most the model's positions.
        seed: of the samples.
        device: `auto`, `cpu`, `cuda` or `mps`.
        dtype: `auto` takes bfloat16 where the device computes in it, else float32.
        batch_size: texts written at a time.
        cache: keeps every batch's texts, where `source_id` names the checkpoint's content.
        source_id: `ModelSource.id`.
        progress: told of the tokens.

    Raises:
        CalibrationError: the model writes next to nothing.
        DamagedFileError: the checkpoint cannot be loaded.
    """
    from compact.devices import resolve_device

    place = resolve_device(device)
    number = _dtype(dtype, place)
    settings = {
        "version": _VERSION,
        "source": source_id,
        "seed": seed,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "device": place,
        "dtype": number,
    }
    writer: _Writer | None = None
    texts: list[str] = []
    written = block = told = 0
    with progress.task("sampling", n_tokens, "tokens") as task:

        def tell(amount: int) -> None:
            nonlocal told
            amount = max(0, min(amount, n_tokens - told))
            told += amount
            task.advance(amount)

        def write(block: int) -> list[dict[str, Any]]:
            nonlocal writer
            writer = writer or _Writer.load(model_dir, place, number)
            return writer.write(batch_size, sequence_length, [seed, block], tell)

        while written < n_tokens:
            if block > 4 * (1 + n_tokens // (batch_size * sequence_length)):
                raise CalibrationError(
                    f"the model wrote {written} tokens where {n_tokens} were wanted", "calibrate on a text instead"
                )
            if cache is None or source_id is None:
                records = write(block)
            else:
                records = _cached(cache, {**settings, "block": block}, partial(write, block))
            # In the order in which they ended, short ones come first; any beginning should be a fair sample.
            random.Random(sha256_json([seed, block])).shuffle(records)  # noqa: S311
            for record in records:
                if written < n_tokens:
                    texts.append(str(record["text"]))
                    written += int(record["tokens"])
            tell(written - told)
            block += 1
    return texts


def _cached(cache: Cache, key: dict[str, Any], write: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The records of one batch, from the cache where they are."""

    def make(work: Path) -> None:
        write_text(work / _FILE, "".join(json.dumps(record) + "\n" for record in write()))

    path = cache.get_or_make("samples", sha256_json(key), make) / _FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _dtype(dtype: str, device: str) -> str:
    """`auto` made definite: samples need no more digits than bfloat16 has."""
    from compact.devices import cpu_multiplies_bfloat16

    if dtype != "auto":
        return dtype
    return "bfloat16" if device != "cpu" or cpu_multiplies_bfloat16() else "float32"


@dataclass(frozen=True)
class _Chat:
    """The chat template around what a user says: the ids before it, and from its end to the answer's beginning."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass
class _Row:
    """One row of the batch: the text that it writes now."""

    chat: _Chat | None
    start: int
    begin: int = 0
    ids: list[int] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)
    asks: bool = False

    def restart(self, column: int) -> None:
        """Begin another text at this column of the batch."""
        self.begin, self.ids, self.asks = column, [], self.chat is not None
        self.forced = deque((self.start,) if self.chat is None else self.chat.before)


@dataclass(frozen=True)
class _Writer:
    """A model that writes."""

    model: Any
    tokenizer: Any
    chat: _Chat | None
    ends: frozenset[int]
    start: int | None

    @staticmethod
    def load(model_dir: Path, device: str, dtype: str) -> _Writer:
        import torch

        from compact.load import load_model

        tokenizer = load_tokenizer(model_dir)
        model = load_model(model_dir, device=device, dtype=getattr(torch, dtype))
        start = _start_id(tokenizer)
        ends = _end_ids(model_dir, tokenizer) | ({start} if start is not None else set())
        return _Writer(model, tokenizer, _chat_of(tokenizer), frozenset(ends), start)

    def write(
        self, batch_size: int, length: int, seed: Sequence[int], tell: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Texts of one batch of `batch_size` rows and `length` positions, with their numbers of tokens.

        `tell` hears of the tokens written.
        """
        digest = sha256_json(list(seed))
        draw = random.Random(digest)  # noqa: S311 (a sample, not a secret)
        known = min(len(self.tokenizer), int(self.model.config.vocab_size))
        chat = self.chat if self.chat is not None and 2 * len(self.chat.before + self.chat.after) < length else None
        rows = []
        for number in range(batch_size):
            start = self.start if self.start is not None else draw.randrange(known)
            rows.append(_Row(chat if number % 2 else None, start))
            rows[-1].restart(0)
        done = self._run(rows, length, known, int(digest[:15], 16), tell)
        found = [self._text(ids) for ids in done]
        return [one for one in found if one["tokens"] >= _FEWEST_TOKENS]

    def _run(
        self, rows: list[_Row], length: int, known: int, seed: int, tell: Callable[[int], None]
    ) -> list[list[int]]:
        """Ids of every text, in the order in which they end."""
        import torch
        from transformers import DynamicCache

        device = self.model.device
        generator = torch.Generator(device=device).manual_seed(seed)
        done: list[list[int]] = []
        mask = torch.zeros((len(rows), length), dtype=torch.int64)
        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            proposed: list[int] = []
            for column in range(length):
                ids = [row.forced.popleft() if row.forced else proposed[n] for n, row in enumerate(rows)]
                for row, token in zip(rows, ids, strict=True):
                    row.ids.append(token)
                mask[:, column] = 1
                positions = [[column - row.begin] for row in rows]
                logits = self._step(ids, positions, mask[:, : column + 1], cache)
                proposed = _sample(logits[:, :known], generator)
                tell(len(rows))
                for n, row in enumerate(rows):
                    if not row.forced and self._ends(row, proposed[n], length):
                        done.append([*row.ids, proposed[n]])
                        row.restart(column + 1)
                        mask[n, : column + 1] = 0
        return done + [row.ids for row in rows if row.ids]

    def _ends(self, row: _Row, token: int, length: int) -> bool:
        """Whether the text is over with this token; a question that is over goes on with the answer."""
        if not row.asks or row.chat is None:
            return token in self.ends
        asked = len(row.ids) - len(row.chat.before)
        if token in self.ends or token == row.chat.after[0] or asked >= length // _USER_SHARE:
            row.asks = False
            row.forced = deque(row.chat.after)
        return False

    def _step(
        self, ids: Sequence[int], positions: Sequence[Sequence[int]], mask: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Logits [rows, vocab_size] after one more token of every row, which `cache` then holds too."""
        import torch

        device = self.model.device
        # Transformers is renaming the argument.
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        out = self.model(
            input_ids=torch.tensor(ids, dtype=torch.int64, device=device)[:, None],
            position_ids=torch.tensor(positions, dtype=torch.int64, device=device),
            attention_mask=mask.to(device),
            use_cache=True,
            **{name: cache},
        )
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _text(self, ids: list[int]) -> dict[str, Any]:
        """The text of a sample. What stands before it by itself is left out; so is half a character at its end."""
        own = ids[1:] if ids[0] == self.start else ids
        text = self.tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = text.rstrip("\ufffd")
        return {"text": text, "tokens": len(encode(self.tokenizer, [text], add_special_tokens=False)[0])}


def _sample(logits: torch.Tensor, generator: torch.Generator) -> list[int]:
    import torch

    drawn: list[int] = torch.multinomial(logits.float().softmax(dim=-1), 1, generator=generator)[:, 0].tolist()
    return drawn


def _start_id(tokenizer: Any) -> int | None:
    """What a document begins with: BOS, or what the model was trained to see between documents; None where neither."""
    if (bos := bos_id(tokenizer)) is not None:
        return bos
    between = tokenizer.get_vocab().get(_BETWEEN_DOCUMENTS)
    for token in (between, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return None


def _end_ids(model_dir: Path, tokenizer: Any) -> set[int]:
    """Ids that end a text, by the tokenizer and the generation settings."""
    found: set[int] = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for name in ("config.json", "generation_config.json"):
        if (model_dir / name).is_file():
            ends = read_json_object(model_dir / name).get("eos_token_id")
            found.update(end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int))
    return found


def _chat_of(tokenizer: Any) -> _Chat | None:
    """The ids of the chat template around a user's words; None where there is no template, or one of another form."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    message = [{"role": "user", "content": _MARK}]
    try:
        rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except Exception:  # a template is a program: any error of it means that it takes no such conversation
        return None
    before, found, after = rendered.partition(_MARK)
    if not found or not before or not after or _MARK in after:
        return None
    ids = encode(tokenizer, [before, after], add_special_tokens=False)
    return _Chat(tuple(ids[0]), tuple(ids[1]))
