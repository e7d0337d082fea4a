"""PrunePlan: a record of every kept token id and channel, and of the inputs of the decision.

Like a lockfile, it separates the decision from its execution: applying the same plan gives the same checkpoint.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import DamagedFileError, PlanMismatchError
from compact.base.files import canonical_json, read_json_object, sha256_json, write_text
from compact.sources.model_source import ModelSource

if TYPE_CHECKING:
    from compact.pruning.budget import Sizes

PLAN = "plan.json"
UPDATES = "updates.safetensors"
SCHEMA = "compact-edge/plan/2"
_HINT = "make the plan again with this version of compact-edge"

# Types of a plan's fields. `read_plan` checks the two lists of ids separately.
_KINDS: dict[str, type | types.UnionType] = {
    "source_name": str,
    "source_id": str,
    "source_hashes": dict,
    "options": dict,
    "method": str,
    "ranking": str,
    "ranking_sha256": str | None,
    "calibration": dict | None,
    "pre": str,
    "updates_sha256": str | None,
    "search": dict | None,
    "repair": dict | None,
    "recovery": dict | None,
}


@dataclass(frozen=True)
class PrunePlan:
    """Everything that applying a plan needs, and a record of how the plan was made.

    Attributes:
        schema: version of this format.
        source_name, source_id, source_hashes: the checkpoint that the plan is for (see `ModelSource`).
        options: the requested ratio, sizes, grid, dtype and so on. For information only.
        method: how channels were scored: `compact`, `magnitude` or `random`. `repair` scores channels as `compact` does
            and changes weights.
        ranking: how tokens were ranked: `merges`, `scripts`, `languages` or `corpus`.
        ranking_sha256: sha256 of the corpus, or None.
        calibration: name, sha256, id, sources and options of the calibration set, or None.
        pre: `tokenizer.ggml.pre` of the tokenizer. Pruning keeps normalizer and pre-tokenizer.
        kept_token_ids: kept rows of the source's embedding, ascending. New id i is row `kept_token_ids[i]`.
        kept_channels: kept FFN channels of the source for each layer, ascending.
        updates_sha256: sha256 of the `updates.safetensors` beside the plan, or None. Its tensors replace the pruned
            ones.
        search: how the sizes were found, or None if there was no search. For information only.
        repair: how weights were repaired (ridge, held-out errors), or None. For information only.
        recovery: how the model was trained after pruning (text and its sha256, tokens, losses), or None. For
            information only.
    """

    schema: str
    source_name: str
    source_id: str
    source_hashes: dict[str, str]
    options: dict[str, Any]
    method: str
    ranking: str
    ranking_sha256: str | None
    calibration: dict[str, Any] | None
    pre: str
    kept_token_ids: list[int]
    kept_channels: list[list[int]]
    updates_sha256: str | None = None
    search: dict[str, Any] | None = None
    repair: dict[str, Any] | None = None
    recovery: dict[str, Any] | None = None

    @property
    def vocab_size(self) -> int:
        """V', the number of kept tokens."""
        return len(self.kept_token_ids)

    @property
    def intermediate_size(self) -> int:
        """I', the number of kept FFN channels of a layer of width 1."""
        return len(self.kept_channels[0])

    @property
    def sizes(self) -> Sizes:
        """V' and I'."""
        from compact.pruning.budget import Sizes  # imports numpy, which reading a plan does not need

        return Sizes(self.vocab_size, self.intermediate_size)

    @property
    def id(self) -> str:
        """The sha256 of the plan's canonical JSON."""
        return sha256_json(asdict(self))

    def write(self, path: Path) -> None:
        """Write the plan as canonical JSON with a final newline, so that equal plans have equal bytes."""
        write_text(path, canonical_json(asdict(self)).decode() + "\n")


def read_plan(path: Path) -> PrunePlan:
    """Read and validate a plan. Raises DamagedFileError if a key is missing or unknown, or has an invalid value."""
    value = read_json_object(path)
    if value.get("schema") != SCHEMA:
        raise DamagedFileError(f"{path}: schema is {value.get('schema')!r}, expected {SCHEMA!r}", _HINT)
    names = {field.name for field in fields(PrunePlan)}
    if value.keys() != names:
        odd = sorted(value.keys() ^ names)
        raise DamagedFileError(f"{path}: key {odd[0]!r} is missing or unknown", _HINT)
    for name, kind in _KINDS.items():
        if not isinstance(value[name], kind):
            raise DamagedFileError(f"{path}: {name} has the wrong type ({type(value[name]).__name__})", _HINT)
    channels = value["kept_channels"]
    if not _ascending(value["kept_token_ids"]):
        raise DamagedFileError(f"{path}: kept_token_ids must be a list of ascending ids", _HINT)
    if not isinstance(channels, list) or not channels or not all(_ascending(row) for row in channels):
        raise DamagedFileError(f"{path}: kept_channels must have a list of ascending channels for every layer", _HINT)
    # A layer that is twice as wide keeps twice as many channels. `check_plan` compares with the model's widths.
    if any(len(row) not in (len(channels[0]), 2 * len(channels[0])) for row in channels):
        raise DamagedFileError(f"{path}: kept_channels has layers of different sizes", _HINT)
    return PrunePlan(**value)


def _ascending(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
        and all(a < b for a, b in itertools.pairwise(values))
    )


def check_plan(plan: PrunePlan, source: ModelSource) -> None:
    """Check that a plan belongs to a source.

    Raises:
        PlanMismatchError: the plan was made for other weights, or it keeps a layer, token or channel that the source
            does not have.
    """
    if plan.source_id != source.id:
        changed = next((n for n, h in source.hashes.items() if plan.source_hashes.get(n) != h), "a file")
        raise PlanMismatchError(
            f"the plan was made for {plan.source_name}, but {changed} differs", "make a new plan for this checkpoint"
        )
    if len(plan.kept_channels) != source.num_hidden_layers:
        raise PlanMismatchError(
            f"the plan has {len(plan.kept_channels)} layers, the model has {source.num_hidden_layers}",
            "make a new plan for this checkpoint",
        )
    _check_range(plan.kept_token_ids, source.vocab_size, "token id")
    for layer, (row, width) in enumerate(zip(plan.kept_channels, source.ffn_widths, strict=True)):
        if len(row) != plan.intermediate_size * width:
            wanted = plan.intermediate_size * width
            raise PlanMismatchError(
                f"the plan keeps {len(row)} channels in layer {layer}, expected {wanted}",
                "make a new plan for this checkpoint",
            )
        _check_range(row, source.intermediate_size * width, "channel")


def _check_range(values: Sequence[int], size: int, what: str) -> None:
    if values[-1] >= size:
        raise PlanMismatchError(
            f"the plan keeps {what} {values[-1]}, but the largest in the model is {size - 1}",
            "make a new plan for this checkpoint",
        )
