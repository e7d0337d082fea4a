"""Draw the calibration set: sequences of token ids from text, by the original tokenizer.

For each source:

1. Cut the text into pieces.
2. Shuffle the pieces with the seed. A small budget then samples all parts of a large file.
3. Encode pieces until there are enough tokens, and split the tokens into sequences.
4. Hold out some pieces from the end of the order, for evaluation. They are not part of any sequence.

Several sources give equal shares of the tokens, and their sequences alternate. Sources are files, built-in texts from
the Python standard library (`compact.texts.stdlib_text`), data sets on the Hub, which are streamed
(`compact.calibration.hub_dataset`), and `self`, which is text that the model writes (`compact.calibration.sampling`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compact.base.cache import Cache
from compact.base.errors import CalibrationError, UsageError
from compact.base.files import sha256_file, sha256_json
from compact.base.progress import SILENT, Progress
from compact.calibration.hub_dataset import draw_documents, names_hub_dataset, parse_dataset
from compact.calibration.mixing import equal_shares, interleave
from compact.texts import stdlib_text
from compact.texts.documents import cut, read_documents
from compact.vocabulary.chat_rendering import ChatRenderer, renderer_of
from compact.vocabulary.tokenizer import encode, load_tokenizer

STDLIB = "stdlib"
STDLIB_PROSE = "stdlib-prose"
BUILT_IN = (STDLIB, STDLIB_PROSE)
# Text that the model writes.
SELF = "self"

DEFAULT_TOKENS = 32_768
# The model `tiny` has 3 layers of 1,024 channels. A quarter of the text is enough to rank them, and keeps builds short.
TINY_TOKENS = 8_192
DEFAULT_SEQUENCE_LENGTH = 2048
# Default calibration of a model from the Hub. As in the paper, it uses 256 samples of 2048 tokens of C4.
C4 = "allenai/c4"
HUB_TOKENS = 256 * DEFAULT_SEQUENCE_LENGTH

# A piece has this many characters per token of a sequence. In most texts, this is enough to fill a sequence.
_CHARS_PER_TOKEN = 4
# One piece in eight of `stdlib-prose` is formatted with the chat template, so that the calibration set contains its
# special tokens in typical positions.
_CHAT_SHARE = 8
# Hold out one part in `_HELD_OUT_SHARE` of a source, and at most this many characters. This is enough to compare two
# models, and costs little of a short text.
_HELD_OUT_CHARACTERS = 16_000
_HELD_OUT_SHARE = 10
# If a text is a single piece with at least this many characters, cut it in two to hold out the end.
_SHORTEST_CUT = 400

# Returns texts that the model writes, with at least the given number of tokens.
Sampler = Callable[[int], list[str]]


@dataclass(frozen=True)
class HeldOut:
    """Text of one source that is not in the calibration set. Alternatives are compared on it.

    Attributes:
        name: name of the source, without a path.
        text: the held-out text.
    """

    name: str
    text: str


@dataclass(frozen=True)
class CalibrationSource:
    """One of the sources of a calibration set.

    Attributes:
        name: name of the file (without a path) or built-in text. For a Hub data set, `org/name@commit:config:split`.
        sha256: sha256 of the file. For all other sources, sha256 of the documents drawn.
        tokens: number of tokens of the calibration set that come from this source.
    """

    name: str
    sha256: str
    tokens: int


@dataclass(frozen=True)
class Calibration:
    """Token sequences to run the original model over.

    Attributes:
        name: name of the file or built-in text. For a Hub data set, `org/name@commit:config:split`. The names of
            several sources are joined with " + ".
        sha256: see `CalibrationSource`. For several sources, sha256 of the canonical JSON of the list of their hashes.
        texts: the pieces in the set, in order.
        sequences: token ids, at most `sequence_length` per sequence. Sequences of several sources alternate.
        options: the options it was made with (tokens, sequence_length, seed).
        id: sha256 of the canonical JSON of all inputs except names.
        held_out: text of every source that is not in any sequence. A source that is too short has no entry.
        sources: the sources, in the order given.
    """

    name: str
    sha256: str
    texts: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    options: dict[str, int]
    id: str
    held_out: tuple[HeldOut, ...] = ()
    sources: tuple[CalibrationSource, ...] = ()

    @property
    def label(self) -> str:
        """The name without a path, so that the same build gives the same label in every directory."""
        return " + ".join(source.name for source in self.sources) or plain_name(self.name)

    @property
    def n_tokens(self) -> int:
        """The number of tokens in all sequences."""
        return sum(len(sequence) for sequence in self.sequences)


def plain_name(name: str) -> str:
    """Return the name of a source without the directory of a file. Other names stay unchanged."""
    return name if names_hub_dataset(name) else Path(name).name


def _digest(documents: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(documents).encode("utf-8", "surrogatepass")).hexdigest()


def _pieces(name: str, tokens: int, size: int, seed: int) -> tuple[list[str], str]:
    """Return the shuffled pieces of a file or built-in text, and the sha256 of the text."""
    if name in BUILT_IN:
        source: stdlib_text.Source = "stdlib" if name == STDLIB else "stdlib-prose"
        # The documents are in a fixed scattered order. Take twice the budget, so that the seed makes a difference.
        documents = list(stdlib_text.take(stdlib_text.documents(source), 2 * _CHARS_PER_TOKEN * tokens))
        # Docstrings are short, so join them to fill the pieces. The sequences then have long contexts too.
        pieces, digest = cut("\n\n".join(documents), size), _digest(documents)
    else:
        path = Path(name)
        if not path.is_file():
            raise CalibrationError(
                f"{name}: no such file",
                "name a text, jsonl or parquet file, a Hub data set (org/name), or: " + ", ".join((*BUILT_IN, SELF)),
            )
        pieces = [piece for document in read_documents(path) for piece in cut(document, size)]
        digest = sha256_file(path)
    random.Random(seed).shuffle(pieces)  # noqa: S311 (a sample, not a secret)
    return pieces, digest


def _as_chat(piece: str, renderer: ChatRenderer) -> str:
    """Return a piece as a question and its answer. A piece that the chat template refuses stays as it is."""
    question, _, rest = piece.strip().partition("\n")
    messages = [{"role": "user", "content": question or "Go on."}, {"role": "assistant", "content": rest or piece}]
    (chat,) = renderer.render([messages], add_generation_prompt=False)
    return piece if chat.text is None else chat.text


@dataclass
class _Drawn:
    """One source with its shuffled pieces. The first `taken` pieces are encoded. The last `keep` stay held out."""

    name: str
    sha256: str
    pieces: Sequence[str]
    tokenizer: Any
    keep: int
    chats: ChatRenderer | None = None
    taken: int = 0
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def grow(self, tokens: int) -> int:
        """Encode pieces until there are `tokens` ids, and return the number of ids, at most `tokens`.

        The last `keep` pieces are not used, so there may be fewer ids.
        """
        while len(self.ids) < tokens and self.taken < len(self.pieces) - self.keep:
            piece = self.pieces[self.taken]
            if self.chats is not None and self.taken % _CHAT_SHARE == _CHAT_SHARE - 1:
                piece = _as_chat(piece, self.chats)
            self.ids += encode(self.tokenizer, [piece], add_special_tokens=True)[0]
            self.texts.append(piece)
            self.taken += 1
        return min(tokens, len(self.ids))

    def held_out(self) -> list[HeldOut]:
        """Return text from pieces at the end of the order. Pieces that equal an encoded one are left out."""
        count = held_out_pieces(self.pieces)
        used = set(self.pieces[: self.taken])
        untouched = [piece for piece in self.pieces[max(self.taken, len(self.pieces) - count) :] if piece not in used]
        text = "\n\n".join(untouched)[:_HELD_OUT_CHARACTERS]
        return [HeldOut(plain_name(self.name), text)] if text.strip() else []


def held_out_pieces(pieces: Sequence[str]) -> int:
    """Return how many pieces at the end of the order to hold out.

    This is a tenth of the pieces with at most 16,000 characters, but at least one if there are two or more pieces.
    """
    most = len(pieces) // _HELD_OUT_SHARE
    count, characters = 0, 0
    for piece in reversed(pieces):
        characters += len(piece)
        if count == most or characters > _HELD_OUT_CHARACTERS:
            break
        count += 1
    return max(count, 1) if len(pieces) > 1 else 0


def make_calibration(
    names: str | Sequence[str],
    model_dir: Path,
    *,
    tokens: int = DEFAULT_TOKENS,
    sequence_length: int,
    seed: int = 0,
    keep_out: bool = False,
    sampler: Sampler | None = None,
    cache: Cache | None = None,
    progress: Progress = SILENT,
) -> Calibration:
    """Draw the calibration set.

    Args:
        names: a file, a built-in text, a data set on the Hub or `self`. Several sources give equal shares.
        model_dir: the checkpoint whose tokenizer encodes the text.
        tokens: number of tokens to draw. There are fewer if the text is too short.
        sequence_length: tokens per sequence, at most the model's number of positions.
        seed: random seed of the order of the pieces.
        keep_out: hold out text of every source, even if there are fewer sequences then. If False, only text that the
            sequences do not need is held out.
        sampler: writes the text of `self`, or None.
        cache: stores what is drawn from the Hub.
        progress: receives the progress of drawing text from the Hub.

    Raises:
        CalibrationError: there is no text, or a source has fewer than 16 tokens.
        UsageError: a source is given twice, or `self` is given without a sampler.
        CompactEdgeError: an error of `compact.calibration.hub_dataset.draw_documents`.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"--calibration {twice}: named twice", "name it once; every source gives an equal share")
    tokenizer = load_tokenizer(model_dir)
    size = sequence_length * _CHARS_PER_TOKEN
    drawn = []
    with ExitStack() as stack:
        for name in names:
            share = -(-tokens // len(names))
            pieces, name, digest = _draw(
                name, tokens=tokens, share=share, size=size, seed=seed, sampler=sampler, cache=cache, progress=progress
            )
            if keep_out and len(pieces) == 1 and len(pieces[0]) >= _SHORTEST_CUT:
                pieces = cut(pieces[0], -(-len(pieces[0]) * (_HELD_OUT_SHARE - 1) // _HELD_OUT_SHARE))
            chats = stack.enter_context(renderer_of(tokenizer)) if name == STDLIB_PROSE else None
            drawn.append(_Drawn(name, digest, pieces, tokenizer, held_out_pieces(pieces) if keep_out else 0, chats))
        shares = equal_shares([one.grow for one in drawn], tokens)
    for one, count in zip(drawn, shares, strict=True):
        if count < 16:
            raise CalibrationError(f"{one.name}: only {count} tokens of text", "give a longer calibration text")
        one.ids = one.ids[:count]
    sequences = interleave([split_stream(one.ids, sequence_length) for one in drawn])
    held_out = tuple(held for one in drawn for held in one.held_out())
    options = {"tokens": tokens, "sequence_length": sequence_length, "seed": seed}
    digest = drawn[0].sha256 if len(drawn) == 1 else sha256_json([one.sha256 for one in drawn])
    identity = {"sha256": digest, **options, "sequences": sha256_json(sequences)}
    if keep_out:
        identity["held_out"] = _digest(held.text for held in held_out)
    return Calibration(
        name=" + ".join(one.name for one in drawn),
        sha256=digest,
        texts=tuple(interleave([one.texts for one in drawn])),
        sequences=tuple(sequences),
        options=options,
        id=sha256_json(identity),
        held_out=held_out,
        sources=tuple(CalibrationSource(plain_name(one.name), one.sha256, len(one.ids)) for one in drawn),
    )


def _draw(
    name: str,
    *,
    tokens: int,
    share: int,
    size: int,
    seed: int,
    sampler: Sampler | None,
    cache: Cache | None,
    progress: Progress,
) -> tuple[Sequence[str], str, str]:
    """Return the shuffled pieces of a source, its full name, and the sha256 of the text."""
    if name == SELF:
        if sampler is None:
            raise UsageError(
                f"--calibration {SELF}: this command has no model that can write text", "name another text"
            )
        # Write only the tokens of its share and of the held-out text, because writing text is slow.
        pieces = sampler(share + min(share // _HELD_OUT_SHARE + 16, _HELD_OUT_CHARACTERS // _CHARS_PER_TOKEN))
        return pieces, name, _digest(pieces)
    if names_hub_dataset(name) and (dataset := parse_dataset(name)) is not None:
        # The draw must not depend on the tokenizer, so take twice the characters that most languages need.
        characters = 2 * _CHARS_PER_TOKEN * tokens
        pieces, name = draw_documents(dataset, characters, size, seed, cache=cache, progress=progress)
        return pieces, name, _digest(pieces)
    pieces, digest = _pieces(name, tokens, size, seed)
    return pieces, name, digest


def split_stream(stream: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """Split ids into consecutive sequences of `length` ids. The last sequence may be shorter."""
    return [tuple(stream[at : at + length]) for at in range(0, len(stream), length)]


def retokenise(texts: Iterable[str], model_dir: Path, *, sequence_length: int) -> list[tuple[int, ...]]:
    """Encode texts with the tokenizer of another (pruned) checkpoint, and split the ids into sequences.

    An importance matrix is collected on these sequences.
    """
    tokenizer = load_tokenizer(model_dir)
    stream = [i for ids in encode(tokenizer, texts, add_special_tokens=True) for i in ids]
    return split_stream(stream, sequence_length)
