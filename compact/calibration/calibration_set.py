"""The calibration set: text -> token sequences of the original tokenizer.

A file is cut into pieces, the pieces are put in an order drawn from the seed, and pieces are taken until the tokens
asked for are there: a small budget samples all of a large file. Built-in texts come from the Python standard library
(`compact.texts.stdlib_text`), so that every machine has them. A data set on the Hub is read as a stream
(`compact.calibration.hub_dataset`), and `self` is text that the model itself writes (`compact.calibration.sampling`).
Several sources give equal shares of the tokens, and their sequences alternate. Text from the back of every source's
order that no sequence holds is there to judge choices on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
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
from compact.vocabulary.tokenizer import encode, load_tokenizer

STDLIB = "stdlib"
STDLIB_PROSE = "stdlib-prose"
BUILT_IN = (STDLIB, STDLIB_PROSE)
# What the model writes itself.
SELF = "self"

DEFAULT_TOKENS = 32_768
# The embedded model has 3 layers of 1,024 channels: a quarter of the text ranks them, and its build stays short.
TINY_TOKENS = 8_192
DEFAULT_SEQUENCE_LENGTH = 2048
# What a model from the Hub is calibrated on where the user names nothing: the paper's 256 samples of 2048 tokens of C4.
C4 = "allenai/c4"
HUB_TOKENS = 256 * DEFAULT_SEQUENCE_LENGTH

# A piece is about this many characters a token of the sequence: long enough to fill a sequence in most texts.
_CHARS_PER_TOKEN = 4
# One piece in eight of `stdlib-prose` goes through the chat template, so that its specials are seen in their places.
_CHAT_SHARE = 8
# What is held out of a source: enough to tell two models apart, and little of a short text.
_HELD_OUT_CHARACTERS = 16_000
_HELD_OUT_SHARE = 10
# A text of one piece and at least so many characters is cut, for its end to be held out.
_SHORTEST_CUT = 400

# Given a number of tokens, texts by the model that hold at least as many.
Sampler = Callable[[int], list[str]]


@dataclass(frozen=True)
class HeldOut:
    """Text of one calibration source that the calibration set does not hold: what choices are judged on."""

    name: str
    text: str


@dataclass(frozen=True)
class CalibrationSource:
    """One of the texts that a calibration set is drawn from.

    Attributes:
        name: the file or built-in, without a path; of a Hub data set, `org/name@commit:config:split`.
        sha256: of the file (or, for a built-in, a data set or the model's own text, of the documents drawn).
        tokens: how many of the set's tokens are from it.
    """

    name: str
    sha256: str
    tokens: int


@dataclass(frozen=True)
class Calibration:
    """Token sequences to run the original model over.

    Attributes:
        name: the file or built-in; of a Hub data set, `org/name@commit:config:split`; several joined by " + ".
        sha256: as in `CalibrationSource`; of several, the sha256 of the canonical JSON of theirs.
        texts: the pieces taken, in order.
        sequences: ids, each at most `sequence_length` long; those of several sources alternate.
        options: what it was made with (tokens, sequence_length, seed).
        id: sha256 of the canonical JSON of name-independent inputs.
        held_out: of every source, text that is in none of the sequences; none of a source that has none to spare.
        sources: what it is drawn from, in the order given.
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
        """The name without a path, so that equal builds in two places say the same."""
        return " + ".join(source.name for source in self.sources) or plain_name(self.name)

    @property
    def n_tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)


def plain_name(name: str) -> str:
    """A calibration's name as the user gave it: a file's without its folder, any other whole."""
    return name if names_hub_dataset(name) else Path(name).name


def _digest(documents: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(documents).encode("utf-8", "surrogatepass")).hexdigest()


def _pieces(name: str, tokens: int, size: int, seed: int) -> tuple[list[str], str]:
    """Pieces of a file or built-in in the order drawn from the seed, and the sha256 of the text they come from."""
    if name in BUILT_IN:
        source: stdlib_text.Source = "stdlib" if name == STDLIB else "stdlib-prose"
        # The documents come in a scattered order; twice what the budget needs leaves the seed something to choose from.
        documents = list(stdlib_text.take(stdlib_text.documents(source), 2 * _CHARS_PER_TOKEN * tokens))
        # Docstrings are short: joined they fill a piece, so that long-range context is there too.
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


def _as_chat(piece: str, tokenizer: Any) -> str:
    question, _, rest = piece.strip().partition("\n")
    messages = [{"role": "user", "content": question or "Go on."}, {"role": "assistant", "content": rest or piece}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    return text


@dataclass
class _Drawn:
    """One source: its pieces in their order, of which the first `taken` are tokenised."""

    name: str
    sha256: str
    pieces: Sequence[str]
    tokenizer: Any
    keep: int
    chats: bool = False
    taken: int = 0
    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def grow(self, tokens: int) -> int:
        """Tokenise pieces until `tokens` ids are there; how many of them there are. The last `keep` are left alone."""
        while len(self.ids) < tokens and self.taken < len(self.pieces) - self.keep:
            piece = self.pieces[self.taken]
            if self.chats and self.taken % _CHAT_SHARE == _CHAT_SHARE - 1:
                piece = _as_chat(piece, self.tokenizer)
            self.ids += encode(self.tokenizer, [piece], add_special_tokens=True)[0]
            self.texts.append(piece)
            self.taken += 1
        return min(tokens, len(self.ids))

    def held_out(self) -> list[HeldOut]:
        """The pieces from the back that no sequence holds, whole or in another place of the text."""
        count = held_out_pieces(self.pieces)
        used = set(self.pieces[: self.taken])
        untouched = [piece for piece in self.pieces[max(self.taken, len(self.pieces) - count) :] if piece not in used]
        text = "\n\n".join(untouched)[:_HELD_OUT_CHARACTERS]
        return [HeldOut(plain_name(self.name), text)] if text.strip() else []


def held_out_pieces(pieces: Sequence[str]) -> int:
    """How many pieces from the back are held out: a tenth and at most 16,000 characters, but one of two or more."""
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
        names: a file, a built-in text, a data set on the Hub or `self`; or several of them, which give equal shares.
        model_dir: the checkpoint whose tokenizer makes the ids.
        tokens: how many to draw (fewer where the text ends before).
        sequence_length: positions of a sequence; at most the model's.
        seed: of the order in which pieces are drawn.
        keep_out: hold text of every source out, though it makes the sequences fewer; else only what they leave.
        sampler: writes the text of `self`.
        cache: keeps what was drawn from the Hub.
        progress: told of the text that comes from the Hub.

    Raises:
        CalibrationError: no text, or too little for one sequence of 16 tokens.
        UsageError: a source is named twice, or `self` without a sampler.
        CompactEdgeError: what `compact.calibration.hub_dataset.draw_documents` raises.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"--calibration {twice}: named twice", "name it once; every source gives an equal share")
    tokenizer = load_tokenizer(model_dir)
    size = sequence_length * _CHARS_PER_TOKEN
    drawn = []
    for name in names:
        share = -(-tokens // len(names))
        pieces, name, digest = _draw(name, tokens, share, size, seed, sampler, cache, progress)
        if keep_out and len(pieces) == 1 and len(pieces[0]) >= _SHORTEST_CUT:
            pieces = cut(pieces[0], -(-len(pieces[0]) * (_HELD_OUT_SHARE - 1) // _HELD_OUT_SHARE))
        chats = name == STDLIB_PROSE and bool(getattr(tokenizer, "chat_template", None))
        drawn.append(_Drawn(name, digest, pieces, tokenizer, held_out_pieces(pieces) if keep_out else 0, chats))
    for one, count in zip(drawn, equal_shares([one.grow for one in drawn], tokens), strict=True):
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
    tokens: int,
    share: int,
    size: int,
    seed: int,
    sampler: Sampler | None,
    cache: Cache | None,
    progress: Progress,
) -> tuple[Sequence[str], str, str]:
    """A source's pieces in their order, its full name, and the sha256 of the text."""
    if name == SELF:
        if sampler is None:
            raise UsageError(f"--calibration {SELF}: is written by a model, and there is none here")
        # Its share, and what is held out. No more, as the others can be longer for nothing and this one cannot.
        pieces = sampler(share + min(share // _HELD_OUT_SHARE + 16, _HELD_OUT_CHARACTERS // _CHARS_PER_TOKEN))
        return pieces, name, _digest(pieces)
    if names_hub_dataset(name) and (dataset := parse_dataset(name)) is not None:
        # Twice the characters that the tokens need in most languages: the draw must not depend on the tokenizer.
        characters = 2 * _CHARS_PER_TOKEN * tokens
        pieces, name = draw_documents(dataset, characters, size, seed, cache=cache, progress=progress)
        return pieces, name, _digest(pieces)
    pieces, digest = _pieces(name, tokens, size, seed)
    return pieces, name, digest


def split_stream(stream: Sequence[int], length: int) -> list[tuple[int, ...]]:
    """Consecutive sequences of `length` ids; the last may be shorter."""
    return [tuple(stream[at : at + length]) for at in range(0, len(stream), length)]


def retokenise(texts: Iterable[str], model_dir: Path, *, sequence_length: int) -> list[tuple[int, ...]]:
    """The same texts as sequences of another (pruned) tokenizer: what an importance matrix is collected on."""
    tokenizer = load_tokenizer(model_dir)
    stream = [i for ids in encode(tokenizer, texts, add_special_tokens=True) for i in ids]
    return split_stream(stream, sequence_length)
