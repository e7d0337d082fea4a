"""The interface of a runtime that scores tasks, and the tokenizer for Transformers and onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from compact.base.errors import DataError
from compact.vocabulary.tokenizer import encode, load_tokenizer
from exporters.llamacpp.engine import Generation
from exporters.native.prefix_groups import Group, Score

# new ids so far -> whether they contain a stop string
Ended = Callable[[list[int]], bool]
# number of newly finished units
Advance = Callable[[int], None]
# Scores by branch and by row of targets.
GroupScores = list[list[Score]]
# Maximum sequences that are scored at a time.
BATCH_SIZE = 16
# Tokens to generate before each check for a stop string.
_CHUNK = 16


class Runtime(Protocol):
    """An open model in some runtime.

    Attributes:
        name: name of the runtime, for display.
        max_length: maximum positions in a sequence.
        prefix_token: the id before a text without context: BOS, or EOS if there is no BOS.
    """

    name: str
    max_length: int
    prefix_token: int

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: the text.
            special: whether to include the tokens that the tokenizer adds. None: include them unless the text
                starts with the text of `prefix_token`.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""

    def score(self, groups: Sequence[Group], advance: Advance) -> list[GroupScores]:
        """Score groups. Each has at most as many branches as the runtime's batch size (default `BATCH_SIZE`).

        `advance` receives the number of processed tokens.
        """

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, ended: Ended, advance: Advance
    ) -> list[list[int]]:
        """Continue prompts greedily until `ended`, an end token of the model (not returned), or `max_tokens`."""

    def close(self) -> None:
        """Release the model."""


class CheckpointTokenizer:
    """The tokenizer of a folder, loaded with Transformers."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer.

        Raises:
            DamagedFileError: the tokenizer cannot be loaded.
            DataError: the tokenizer has neither BOS nor EOS.
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
    """Yield packs of indices of groups with similar lengths, within the limits, with at least one group each.

    Groups with and without a shared prefix are not mixed.
    """

    def length(index: int) -> tuple[int, int]:
        return len(groups[index].prefix), max(len(branch.ids) for branch in groups[index].branches)

    pack: list[int] = []
    branches = tokens = 0
    # Longest first: running out of memory then happens at the start, and the time left is rather overestimated.
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
    """Score groups with `score`, in packs within the limits. Return the scores in the order of `groups`."""
    results: list[GroupScores] = [[] for _ in groups]
    for pack in packs(groups, max_branches=max_branches, max_tokens=max_tokens):
        for index, scores in zip(pack, score([groups[index] for index in pack]), strict=True):
            results[index] = scores
        # Report once per pass. Reports per group would distort the displayed rate.
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
    """Continue one prompt after another, in chunks of a few tokens. Each chunk reuses the previous key-value cache."""
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
