"""Scores sequences with a common prefix together, so that the prefix is computed only once.

The answers to one question follow the same context, and the same few-shot examples precede many questions. A `Group`
is a shared prefix and its continuations. llama.cpp shares it by assigning one token to several sequences of the
key-value cache. onnxruntime and Transformers reuse a copy of the cache after the prefix.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A shorter prefix is not worth a separate pass.
_MIN_SHARED = 8


@dataclass(frozen=True)
class Branch:
    """The part of one sequence after the shared prefix of its group.

    Attributes:
        ids: input token ids, at least one.
        targets: rows of ids to score, each at most `len(ids)` long. The last id of a row is predicted at the last
            position of `ids`, the id before it at the position before, and so on.
    """

    ids: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]

    @property
    def first(self) -> int:
        """Index in `ids` of the first position whose logits are needed."""
        return len(self.ids) - max(map(len, self.targets))


@dataclass(frozen=True)
class Group:
    """A shared prefix, which may be empty, and at least one branch."""

    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def n_tokens(self) -> int:
        """Number of input tokens."""
        return len(self.prefix) + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True)
class Score:
    """Score of one row of targets: its natural-log probability, and whether greedy decoding would produce it."""

    log_probability: float
    greedy: bool


def grouped(
    sequences: Sequence[Branch], *, max_branches: int, max_tokens: int
) -> Iterator[tuple[Group, tuple[int, ...]]]:
    """Group sequences by common prefixes. Yield each group with the indices of its sequences.

    Args:
        sequences: whole sequences, as branches without a prefix.
        max_branches: maximum branches in a group.
        max_tokens: maximum tokens in a group, unless a single sequence is longer.
    """
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].ids)
    members: list[int] = []
    shared = tokens = 0
    for index in order:
        sequence = sequences[index]
        if members:
            common = min(shared, sequence.first, _common(sequences[members[-1]].ids, sequence.ids))
            count = len(members)
            total = tokens + len(sequence.ids) + (count - 1) * shared - count * common
            # Add a member only if it saves at least as much as the shorter prefix costs the other members.
            saves = common >= _MIN_SHARED and count * common >= (count - 1) * shared
            if saves and count < max_branches and total <= max_tokens:
                members.append(index)
                shared, tokens = common, total
                continue
            yield _group(sequences, members, shared), tuple(members)
        members, shared, tokens = [index], sequence.first, len(sequence.ids)
    if members:
        yield _group(sequences, members, shared), tuple(members)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _group(sequences: Sequence[Branch], members: Sequence[int], shared: int) -> Group:
    # A single member has no shared prefix.
    length = shared if len(members) > 1 else 0
    branches = (Branch(sequences[index].ids[length:], sequences[index].targets) for index in members)
    return Group(sequences[members[0]].ids[:length], tuple(branches))


def pack(groups: Sequence[Group]) -> tuple[list[Any], NDArray[np.int64]]:
    """Convert groups to a message: lengths for its JSON header, and all ids concatenated, int64 [N]."""
    lengths: list[Any] = []
    ids: list[int] = []
    for group in groups:
        ids += group.prefix
        branches = []
        for branch in group.branches:
            ids += branch.ids
            ids += itertools.chain.from_iterable(branch.targets)
            branches.append([len(branch.ids), *map(len, branch.targets)])
        lengths.append([len(group.prefix), branches])
    return lengths, np.array(ids, dtype=np.int64)


def unpack(lengths: Sequence[Any], ids: NDArray[np.int64]) -> list[Group]:
    """Convert a message from `pack` back to groups."""
    values = iter(ids.tolist())

    def take(count: int) -> tuple[int, ...]:
        return tuple(itertools.islice(values, count))

    groups = []
    for prefix_length, branch_lengths in lengths:
        prefix = take(prefix_length)
        branches = [Branch(take(first), tuple(take(n) for n in rest)) for first, *rest in branch_lengths]
        groups.append(Group(prefix, tuple(branches)))
    return groups


class Scored:
    """Collects scores of groups from single rows of logits, in the order of the targets in `pack`."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._log_probabilities: dict[tuple[int, int, int], float] = {}
        self._greedy: dict[tuple[int, int, int], bool] = {}
        self._groups = groups
        for g, group in enumerate(groups):
            for b, branch in enumerate(group.branches):
                for t in range(len(branch.targets)):
                    self._log_probabilities[g, b, t], self._greedy[g, b, t] = 0.0, True

    def add(self, g: int, b: int, position: int, row: NDArray[np.float32]) -> None:
        """Add the logits [V] after `ids[position]` of branch `b` in group `g`."""
        branch = self._groups[g].branches[b]
        values = row.astype(np.float64)
        best = int(values.argmax())
        top = values[best]
        total = top + np.log(np.exp(values - top).sum())
        for t, target in enumerate(branch.targets):
            index = position - (len(branch.ids) - len(target))
            if index >= 0:
                self._log_probabilities[g, b, t] += float(values[target[index]] - total)
                self._greedy[g, b, t] &= target[index] == best

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Return the scores as arrays for a message: log probabilities float64 [N], greedy uint8 [N]."""
        greedy = np.array(list(self._greedy.values()), dtype=np.uint8)
        return np.array(list(self._log_probabilities.values()), dtype=np.float64), greedy


def unpack_scores(groups: Sequence[Group], arrays: Sequence[NDArray[Any]]) -> list[list[list[Score]]]:
    """Convert arrays from `Scored.arrays` to scores by group, branch and row of targets."""
    pairs = zip(arrays[0].tolist(), arrays[1].tolist(), strict=True)
    return [
        [[Score(value, bool(greedy)) for value, greedy in itertools.islice(pairs, len(branch.targets))]
         for branch in group.branches]
        for group in groups
    ]  # fmt: skip


def ids_fit(groups: Sequence[Group], n_vocab: int) -> bool:
    """Return whether every id is in a vocabulary of `n_vocab` tokens."""
    _, ids = pack(groups)
    return not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < n_vocab)
