"""What scores a task: the interface of a runtime, and the tokenizer that Transformers and onnxruntime share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from compact.errors import DataError
from compact.tokenizer import encode, load_tokenizer
from exporters.engine import Generation
from exporters.prefix_groups import Group, Score

# ids so far -> whether a stop string has come
Ended = Callable[[list[int]], bool]
# units of finished work
Advance = Callable[[int], None]
# By branch and row of targets.
GroupScores = list[list[Score]]
# Sequences that are scored at a time.
BATCH_SIZE = 16
# Tokens generated between two looks for a stop string.
_CHUNK = 16


class Runtime(Protocol):
    """A model held open by what runs it.

    Attributes:
        name: of the runtime, for people.
        max_length: most positions of a sequence.
        prefix_token: the id that stands before a text without a context: BOS, or EOS where there is no BOS.
    """

    name: str
    max_length: int
    prefix_token: int

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Token ids; `special` says whether with the tokens that the tokenizer adds.

        None: with them, unless the text begins with the text of `prefix_token` already.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""

    def score(self, groups: Sequence[Group], advance: Advance) -> list[GroupScores]:
        """Scores of groups, each of at most `BATCH_SIZE` branches or what the runtime was opened with.

        `advance` is told of every token fed.
        """

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, ended: Ended, advance: Advance
    ) -> list[list[int]]:
        """Greedy continuations of prompts, each until `ended`, an end of the model's own (left out) or the limit."""

    def close(self) -> None:
        """Give back what is held."""


class CheckpointTokenizer:
    """tokenizer.json of a folder, through Transformers."""

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            DamagedFileError: it cannot be loaded.
            DataError: it has neither BOS nor EOS.
        """
        self._tokenizer = load_tokenizer(folder)
        ends: int | None = self._tokenizer.eos_token_id
        begin: int | None = self._tokenizer.bos_token_id
        token = ends if begin is None else begin
        if token is None:
            raise DataError(
                f"{folder}: the tokenizer has neither BOS nor EOS", "name one in tokenizer_config.json (eos_token)"
            )
        self.prefix_token = token
        self.ends = frozenset(() if ends is None else (ends,))
        self._prefix_text: str = self._tokenizer.decode([token])

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """See `Runtime.encode`."""
        if special is None:
            special = not text.startswith(self._prefix_text)
        return encode(self._tokenizer, [text], add_special_tokens=special)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Runtime.decode`."""
        text: Any = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return str(text)


def packs(groups: Sequence[Group], *, max_branches: int, max_tokens: int) -> Iterator[list[int]]:
    """Indices of groups of like lengths, so many at a time as stay within the limits; at least one.

    Those with and without a shared beginning are not mixed.
    """

    def length(index: int) -> tuple[int, int]:
        return len(groups[index].prefix), max(len(branch.ids) for branch in groups[index].branches)

    pack: list[int] = []
    branches = tokens = 0
    # The longest first: what does not fit into memory fails at once, and the time left is overestimated.
    for index in sorted(range(len(groups)), key=length, reverse=True):
        group = groups[index]
        count, size = len(group.branches), group.n_tokens
        full = branches + count > max_branches or tokens + size > max_tokens
        if pack and (full or bool(group.prefix) != bool(groups[pack[0]].prefix)):
            yield pack
            pack, branches, tokens = [], 0, 0
        pack.append(index)
        branches, tokens = branches + count, tokens + size
    if pack:
        yield pack


def score_in_packs(
    groups: Sequence[Group],
    score: Callable[[Sequence[Group]], list[GroupScores]],
    advance: Advance,
    *,
    max_branches: int,
    max_tokens: int,
) -> list[GroupScores]:
    """Score groups through `score`, which takes so many at a time as stay within the limits."""
    results: list[GroupScores] = [[] for _ in groups]
    for pack in packs(groups, max_branches=max_branches, max_tokens=max_tokens):
        for index, scores in zip(pack, score([groups[index] for index in pack]), strict=True):
            results[index] = scores
        # Once a pass: told of each group, a bar would show the rate of telling.
        advance(sum(groups[index].n_tokens for index in pack))
    return results


def generate_each(
    generate: Callable[..., Generation],
    stop: Sequence[int],
    prompts: Sequence[list[int]],
    max_tokens: int,
    ended: Ended,
    advance: Advance,
) -> list[list[int]]:
    """One prompt after another, a few tokens at a time, each time from the cache that the last left."""
    results = []
    for prompt in prompts:
        made: list[int] = []
        while len(made) < max_tokens:
            ids = generate([*prompt, *made], min(_CHUNK, max_tokens - len(made)), stop, reuse=True).ids
            finished = ids[-1] in stop
            made += ids[:-1] if finished else ids
            if finished or ended(made):
                break
        results.append(made)
        advance(1)
    return results
