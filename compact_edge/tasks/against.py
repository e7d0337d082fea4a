"""`eval --against`: two models score one text. The loss of the first is divided by where it occurs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import UsageError
from compact.base.files import write_bytes
from compact.checkpoints.names import TOKENIZER
from compact.forward.evaluate import TextScorer, open_checkpoint, token_bits
from compact.forward.excess import AFTER, SPLIT, ScoredTokens, Totals, Word, align, split_words, totals
from compact.sources.model_source import open_source
from compact.vocabulary.token_pieces import TokenPieces, read_pieces
from compact_edge.output import check_new_file
from compact_edge.terminal.console import cut_middle, format_table
from exporters.opened import named_artifact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compact.base.cache import Cache
    from compact.base.progress import Progress

N_WORDS = 50
_WHERE = ("words that are split", f"within {AFTER} tokens after a split", "everything else")
# Display widths of a word and of its pieces.
_WORD, _PIECES = 24, 34


@dataclass(frozen=True)
class Reading:
    """A text as one model reads and scores it.

    Attributes:
        name: the model, as the user gave it.
        tokens: ids, positions and bits of the text's tokens.
        pieces: the model's vocabulary.
        window: positions per window.
    """

    name: str
    tokens: ScoredTokens
    pieces: TokenPieces
    window: int


@dataclass(frozen=True)
class CostlyWord:
    """A token of the other model that the model splits.

    Attributes:
        token: spelling in the other model's tokenizer.json.
        text: bytes of the token.
        pieces: bytes of its parts in the model, at its first occurrence.
        count: number of times that it is split.
        excess: total bits above the other model.
        missing: whether the model lacks the token. If false, the model has it, but its merges split the text elsewhere.
    """

    token: str
    text: bytes
    pieces: tuple[bytes, ...]
    count: int
    excess: float
    missing: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "text": _decoded(self.text),
            "pieces": [_decoded(piece) for piece in self.pieces],
            "count": self.count,
            "excess_bits": self.excess,
            "missing": self.missing,
        }


@dataclass(frozen=True)
class Comparison:
    """Where a model loses to another on a text.

    Attributes:
        model, against: the two readings.
        n_bytes: bytes of the text that both models score. Without BOS, the first token is only context. Then scoring
            starts at the first common token boundary after it, and bits per byte differ slightly from `eval`.
        n_tokens, n_against: tokens of each model in these bytes.
        totals: totals by class.
        n_split: number of distinct split words.
        words: the most expensive split words, most expensive first. All have a positive excess.
    """

    model: Reading
    against: Reading
    n_bytes: int
    totals: tuple[Totals, ...]
    n_split: int
    words: tuple[CostlyWord, ...]

    @property
    def n_tokens(self) -> int:
        return sum(part.tokens for part in self.totals)

    @property
    def n_against(self) -> int:
        return sum(part.against_tokens for part in self.totals)

    @property
    def bits_per_byte(self) -> float:
        return sum(part.bits for part in self.totals) / self.n_bytes

    @property
    def against_bits_per_byte(self) -> float:
        return sum(part.against_bits for part in self.totals) / self.n_bytes

    @property
    def excess(self) -> float:
        """Bits per byte of the model minus those of the other."""
        return sum(part.excess for part in self.totals) / self.n_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`. `excess_bits_per_byte` of the classes add up to that of the text."""
        return {
            "n_bytes": self.n_bytes,
            "bits_per_byte": self.bits_per_byte,
            "against_bits_per_byte": self.against_bits_per_byte,
            "excess_bits_per_byte": self.excess,
            "n_tokens": self.n_tokens,
            "against_n_tokens": self.n_against,
            "window": self.model.window,
            "against_window": self.against.window,
            "classes": {
                part.name: {
                    "segments": part.segments,
                    "n_bytes": part.n_bytes,
                    "n_tokens": part.tokens,
                    "against_n_tokens": part.against_tokens,
                    "excess_bits_per_byte": part.excess / self.n_bytes,
                }
                for part in self.totals
            },
            "n_split_words": self.n_split,
            "words": [word.as_dict() for word in self.words],
        }

    def as_text(self) -> str:
        """Return three tables: the two models, the classes, and the words."""
        relative = f" ({self.excess / self.against_bits_per_byte:+.1%})" if self.against_bits_per_byte else ""
        models = format_table(
            ("MODEL", "BITS PER BYTE", "TOKENS"),
            [
                (self.model.name, f"{self.bits_per_byte:.4f}", f"{self.n_tokens:,}"),
                (self.against.name, f"{self.against_bits_per_byte:.4f}", f"{self.n_against:,}"),
                ("excess", f"{self.excess:+.4f}{relative}", f"{self.n_tokens - self.n_against:+,}"),
            ],
        )
        return "\n\n".join([models, self._classes(), self._words()])

    def _classes(self) -> str:
        rows = [
            (
                where,
                f"{part.n_bytes / self.n_bytes:.1%}",
                f"{part.tokens:,}",
                f"{part.excess / self.n_bytes:+.4f}",
                f"{part.excess / (self.excess * self.n_bytes):.0%}" if self.excess else "-",
            )
            for where, part in zip(_WHERE, self.totals, strict=True)
        ]
        rows.append(("all", "100.0%", f"{self.n_tokens:,}", f"{self.excess:+.4f}", "100%" if self.excess else "-"))
        return format_table(("WHERE THE EXCESS IS", "BYTES", "TOKENS", "BITS PER BYTE", "SHARE"), rows)

    def _words(self) -> str:
        if not self.words:
            return "no split word costs more bits" if self.n_split else "no words are split"
        split = next(part.excess for part in self.totals if part.name == SPLIT)
        listed = sum(word.excess for word in self.words)
        share = f" ({listed / split:.0%} of their total cost)" if split > 0 else ""
        title = f"the {len(self.words):,} most expensive of {self.n_split:,} split words{share}:"
        rows = [
            (
                cut_middle(visible(word.text), _WORD),
                f"{word.count:,}",
                f"{word.excess:,.1f}",
                f"{word.excess / word.count:.1f}",
                cut_middle(" + ".join(visible(piece) for piece in word.pieces), _PIECES),
            )
            for word in self.words
        ]
        return title + "\n" + format_table(("WORD", "TIMES", "EXCESS BITS", "EACH TIME", "WRITTEN AS"), rows)


def compare(
    model: str,
    against: str,
    text: str,
    *,
    n_words: int,
    window: int | None,
    pre: str | None = None,
    device: str,
    threads: int,
    cache: Cache,
    progress: Progress,
) -> Comparison:
    """Score a text with two models, one after the other, and divide the loss of the first.

    Args:
        model, against: each a checkpoint, GGUF file, ONNX folder, Hub id or built-in model.
        text: text that both score, with the same window and stride in positions. If their tokens have different
            lengths, the contexts differ.
        n_words: maximum number of words to list.
        window: positions per window; 2048 by default, and at most the context of each model.
        pre: pre-tokenizer to use instead of that of `model`, a GGUF; or None.
        device: device for a checkpoint.
        threads: threads of the runtimes.
        cache: for `open_source`.
        progress: shows the scoring.

    Raises:
        CompactEdgeError: a model cannot be opened.
        DataError: a tokenizer changes the text.
        CalibrationError: the text is too short.
    """
    readings = []
    for name, own in ((model, pre), (against, None)):
        opened = _opened(name, cache, progress, window=window, pre=own, device=device, threads=threads)
        with opened as (scorer, pieces):
            readings.append(_read(name, scorer, pieces, text, progress))
    first, second = readings
    segments = align(first.tokens, second.tokens)
    known = first.pieces.known
    words = split_words(
        segments, first.tokens, second.tokens, lambda token_id: second.pieces.bytes_of(token_id) not in known
    )
    costly = [_costly(word, second.pieces, known) for word in words[:n_words] if word.excess > 0]
    return Comparison(first, second, segments.n_bytes, totals(segments), len(words), tuple(costly))


@contextmanager
def _opened(
    name: str,
    cache: Cache,
    progress: Progress,
    *,
    window: int | None,
    pre: str | None,
    device: str,
    threads: int,
) -> Iterator[tuple[TextScorer, TokenPieces]]:
    artifact = named_artifact(name, pre)
    if artifact is not None:
        pieces = artifact.pieces()
        with artifact.open(threads=threads, window=window) as scorer:
            yield scorer, pieces
    else:
        directory = open_source(name, cache, progress).directory
        pieces = read_pieces(directory / TOKENIZER)
        yield open_checkpoint(directory, window=window, device=device, dtype="float32"), pieces


def _read(name: str, scorer: TextScorer, pieces: TokenPieces, text: str, progress: Progress) -> Reading:
    ids = scorer.encode(text)
    ends = pieces.ends(ids, text)
    bits = token_bits(scorer, ids, progress=progress, label=f"scoring {Path(name).name}")
    first = 1 if scorer.bos is None else 0
    return Reading(name, ScoredTokens(ids, ends, bits, first), pieces, scorer.window)


def _costly(word: Word, pieces: TokenPieces, known: frozenset[bytes]) -> CostlyWord:
    text = pieces.bytes_of(word.token_id)
    places = (0, *(len(text) - cut for cut in word.cuts), len(text))
    parts = tuple(text[begin:end] for begin, end in pairwise(places))
    return CostlyWord(pieces.spelling[word.token_id], text, parts, word.count, word.excess, missing=text not in known)


def visible(text: bytes) -> str:
    """Format a token for display: spaces as `␣`, control characters and invalid UTF-8 as escapes."""
    return "".join(
        "␣" if character == " " else character if character.isprintable() else _escaped(character)
        for character in _decoded(text)
    )


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def check_tokens_file(path: Path) -> None:
    """Check the file of `--save-tokens` before any work is done.

    Raises:
        UsageError: `--keep-tokens` would read a file of this name in another format.
        OutputExistsError, StorageError: the file exists or cannot be written.
    """
    if path.suffix in (".jsonl", ".parquet"):
        raise UsageError(
            f"--save-tokens {path}: the file is plain text, one token per line", "use a name such as keep.txt"
        )
    check_new_file(path, "--save-tokens")


def save_tokens(path: Path, found: Comparison, progress: Progress) -> None:
    """Write the listed words that the model lacks, one per line, as `--keep-tokens` reads them.

    A token whose spelling contains a line break is left out with a note. If no token is left, no file is written,
    because `--keep-tokens` refuses an empty file.

    Raises:
        StorageError, DiskFullError: the file cannot be written.
    """
    missing = [word.token for word in found.words if word.missing]
    tokens = [token for token in missing if token.splitlines() == [token]]
    if len(tokens) < len(missing):
        progress.note(f"{path}: left out {len(missing) - len(tokens)} tokens that contain a line break")
    if not tokens:
        progress.note(f"{path}: not written, because there is no word to keep")
        return
    write_bytes(path, "".join(f"{token}\n" for token in tokens).encode("utf-8"))
    progress.note(f"wrote {len(tokens)} tokens to {path}; use them with --keep-tokens of prune or build")
