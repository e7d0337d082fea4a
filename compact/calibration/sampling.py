"""Calibration text that the model writes itself, sampled at temperature 1.

Such text follows the model's own distribution, needs no file or network, and contains special tokens in context.

Half of the rows of a batch begin like a document. The other half begin with a user's turn of the chat template, so that
the model writes both question and answer. When the text of a row ends, the row begins another one, and the attention
mask hides the earlier text. Every step of a batch is therefore used.
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

from compact.base.cache import Cache
from compact.base.errors import CalibrationError
from compact.base.files import read_json_object, sha256_json, write_text
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import CONFIG, GENERATION_CONFIG
from compact.vocabulary.chat_rendering import renderer_of
from compact.vocabulary.tokenizer import bos_id, encode, load_tokenizer

if TYPE_CHECKING:
    import torch

# Positions of a sample. Every step attends to all earlier positions, so long samples are slow.
SAMPLE_LENGTH = 256
# Texts written at a time. On two CPU cores, 64 rows give more tokens per second than 32 or 128.
_BATCH_SIZE = 64
# Discard texts with fewer tokens: they are cut off at the end of a row, or almost empty.
_FEWEST_TOKENS = 8
# A user's turn is ended after at most 1 / _USER_SHARE of the positions.
_USER_SHARE = 4
# The start token for models without BOS. In training, it separated their documents.
_BETWEEN_DOCUMENTS = "<|endoftext|>"
# Placeholder for the user's words in the chat template.
_MARK = "\ue000"
_FILE = "samples.jsonl"
# Increase this when the same inputs give different texts.
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
    """Return texts written by the model, with at least `n_tokens` tokens in total.

    On the same machine, equal arguments give equal texts. A larger `n_tokens` gives the same texts and more. The texts
    contain special tokens, except BOS if the tokenizer adds it before every text.

    Args:
        model_dir: the checkpoint.
        n_tokens: wanted number of tokens in all texts, counted by the model's tokenizer.
        sequence_length: maximum length of a text in tokens. At most the model's number of positions.
        seed: seed of the samples.
        device: `auto`, `cpu`, `cuda` or `mps`.
        dtype: a torch dtype. `auto` selects bfloat16 if the device computes in it, otherwise float32.
        batch_size: texts written at a time.
        cache: stores the texts of every batch. Used only together with `source_id`.
        source_id: `ModelSource.id`, which identifies the checkpoint's content.
        progress: receives the number of tokens.

    Raises:
        CalibrationError: the model writes too little text.
        DamagedFileError: the checkpoint cannot be loaded.
    """
    from compact.base.devices import resolve_device

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
    written = block = reported = 0
    with progress.task("sampling", n_tokens, "tokens") as task:

        def report(amount: int) -> None:
            nonlocal reported
            amount = max(0, min(amount, n_tokens - reported))
            reported += amount
            task.advance(amount)

        def write(block: int) -> list[dict[str, Any]]:
            nonlocal writer
            writer = writer or _Writer.load(model_dir, place, number)
            return writer.write(batch_size, sequence_length, [seed, block], report)

        while written < n_tokens:
            if block > 4 * (1 + n_tokens // (batch_size * sequence_length)):
                raise CalibrationError(
                    f"the model wrote only {written} of {n_tokens} tokens", "use a calibration text instead of self"
                )
            if cache is None or source_id is None:
                records = write(block)
            else:
                records = _cached(cache, {**settings, "block": block}, partial(write, block))
            # Records are in the order in which they ended, so short ones come first. Shuffle them, so that every prefix
            # is a fair sample.
            random.Random(sha256_json([seed, block])).shuffle(records)  # noqa: S311
            for record in records:
                if written < n_tokens:
                    texts.append(str(record["text"]))
                    written += int(record["tokens"])
            report(written - reported)
            block += 1
    return texts


def _cached(cache: Cache, key: dict[str, Any], write: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the records of one batch from the cache. If they are not there, write and store them."""

    def make(work: Path) -> None:
        write_text(work / _FILE, "".join(json.dumps(record) + "\n" for record in write()))

    path = cache.get_or_make("samples", sha256_json(key), make) / _FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _dtype(dtype: str, device: str) -> str:
    """Resolve `auto`. For samples, the precision of bfloat16 is enough."""
    from compact.base.devices import cpu_multiplies_bfloat16

    if dtype != "auto":
        return dtype
    return "bfloat16" if device != "cpu" or cpu_multiplies_bfloat16() else "float32"


@dataclass(frozen=True)
class _Chat:
    """The ids of the chat template around the user's words.

    Attributes:
        before: ids before the user's words.
        after: ids after them, up to the start of the answer.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass
class _Row:
    """One row of a batch, and the text that it is writing.

    Attributes:
        chat: the chat template, or None for a row that writes documents.
        start: the first id of a document.
        begin: column of the batch in which the current text begins.
        ids: ids of the current text.
        forced: ids to write next instead of sampling.
        asks: whether the row is writing the user's turn.
    """

    chat: _Chat | None
    start: int
    begin: int = 0
    ids: list[int] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)
    asks: bool = False

    def restart(self, column: int) -> None:
        """Begin a new text at this column of the batch."""
        self.begin, self.ids, self.asks = column, [], self.chat is not None
        self.forced = deque((self.start,) if self.chat is None else self.chat.before)


@dataclass(frozen=True)
class _Writer:
    """A loaded model that writes texts.

    Attributes:
        model, tokenizer: as loaded by Transformers.
        chat: the chat template, or None if it is missing or cannot be used.
        ends: ids that end a text.
        start: the first id of a document. None begins with a random id.
    """

    model: Any
    tokenizer: Any
    chat: _Chat | None
    ends: frozenset[int]
    start: int | None

    @staticmethod
    def load(model_dir: Path, device: str, dtype: str) -> _Writer:
        import torch

        from compact.forward.load import load_model

        tokenizer = load_tokenizer(model_dir)
        model = load_model(model_dir, device=device, dtype=getattr(torch, dtype))
        start = _start_id(tokenizer)
        ends = _end_ids(model_dir, tokenizer) | ({start} if start is not None else set())
        return _Writer(model, tokenizer, _chat_of(tokenizer), frozenset(ends), start)

    def write(
        self, batch_size: int, length: int, seed: Sequence[int], report: Callable[[int], None]
    ) -> list[dict[str, Any]]:
        """Write the texts of one batch.

        Args:
            batch_size: number of rows.
            length: positions per row.
            seed: numbers that determine the samples.
            report: receives the number of tokens written in each step.

        Returns:
            Records with `text` and its number of `tokens`, in the order in which they ended.
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
        done = self._run(rows, length, known, int(digest[:15], 16), report)
        found = [self._text(ids) for ids in done]
        return [one for one in found if one["tokens"] >= _FEWEST_TOKENS]

    def _run(
        self, rows: list[_Row], length: int, known: int, seed: int, report: Callable[[int], None]
    ) -> list[list[int]]:
        """Sample all rows. Return the ids of every text, in the order in which they ended."""
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
                report(len(rows))
                for n, row in enumerate(rows):
                    if not row.forced and self._ends(row, proposed[n], length):
                        done.append([*row.ids, proposed[n]])
                        row.restart(column + 1)
                        mask[n, : column + 1] = 0
        return done + [row.ids for row in rows if row.ids]

    def _ends(self, row: _Row, token: int, length: int) -> bool:
        """Return whether this token ends the text. If it ends a question, the row continues with the answer."""
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
        """Append one token to every row and to `cache`. Return the logits [rows, vocab_size]."""
        import torch

        device = self.model.device
        # The name of the argument depends on the version of Transformers.
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        out = self.model(
            input_ids=torch.tensor(ids, dtype=torch.int64, device=device)[:, None],
            position_ids=torch.tensor(positions, dtype=torch.int64, device=device),
            attention_mask=mask.to(device),
            use_cache=True,
            **{name: cache},
        )
        logits: torch.Tensor = out.logits[:, -1]  # [rows, vocab_size]
        return logits

    def _text(self, ids: list[int]) -> dict[str, Any]:
        """Decode a sample, without its start token and without an incomplete character at its end."""
        body = ids[1:] if ids[0] == self.start else ids
        text = self.tokenizer.decode(body, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = text.rstrip("\ufffd")
        return {"text": text, "tokens": len(encode(self.tokenizer, [text], add_special_tokens=False)[0])}


def _sample(logits: torch.Tensor, generator: torch.Generator) -> list[int]:
    import torch

    drawn: list[int] = torch.multinomial(logits.float().softmax(dim=-1), 1, generator=generator)[:, 0].tolist()
    return drawn


def _start_id(tokenizer: Any) -> int | None:
    """Return the first id of a document, or None if the tokenizer has no suitable token.

    This is BOS if the tokenizer adds it to a text. Otherwise it is the first that exists of `<|endoftext|>`, BOS and
    EOS.
    """
    if (bos := bos_id(tokenizer)) is not None:
        return bos
    between = tokenizer.get_vocab().get(_BETWEEN_DOCUMENTS)
    for token in (between, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return None


def _end_ids(model_dir: Path, tokenizer: Any) -> set[int]:
    """Return the ids that end a text, according to the tokenizer and both configuration files."""
    found: set[int] = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for name in (CONFIG, GENERATION_CONFIG):
        if (model_dir / name).is_file():
            ends = read_json_object(model_dir / name).get("eos_token_id")
            found.update(end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int))
    return found


def _chat_of(tokenizer: Any) -> _Chat | None:
    """Return the ids of the chat template around the user's words, or None without a usable template."""
    with renderer_of(tokenizer) as renderer:
        if renderer is None:
            return None
        (chat,) = renderer.render([[{"role": "user", "content": _MARK}]], add_generation_prompt=True)
    if chat.text is None:  # the template does not support this conversation
        return None
    rendered = chat.text
    before, found, after = rendered.partition(_MARK)
    if not found or not before or not after or _MARK in after:
        return None
    ids = encode(tokenizer, [before, after], add_special_tokens=False)
    return _Chat(tuple(ids[0]), tuple(ids[1]))
