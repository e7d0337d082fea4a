"""What the search and its predictions are worth: the parts `search`, `predictions` and `ratios` of `front`.

- search: for sizes from a quarter to nine tenths of the unpruned Q8_0 file, the file that `build --fit` chooses, scored
  on the texts of the benchmark. The search does not see these texts.
- predictions: the loss that the search predicts for every recorded cell.
- ratios: the sizes of `--ratio` by prediction and by the fixed rule, scored in float32.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Cells, bits_per_byte, recorded
from compact.base.cache import Cache, default_root
from compact.decide import decide
from compact.pruning.apply import prune
from compact.pruning.budget import Sizes
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.sources.model_source import ModelSource
from compact_edge.front.candidates import SearchLimits, StoredType
from compact_edge.front.choose import Wanted, open_search
from compact_edge.front.search import FrontSearch, run_search
from compact_edge.front.trials import Trials
from compact_edge.terminal.console import Console
from exporters.format_values import ORIGINAL, Request
from exporters.gguf.format import GgufFormat
from targets.profile import load_profile

SHARES = (0.25, 0.4, 0.55, 0.7, 0.9)
RATIOS = {
    "tiny": (0.1, 0.2, 0.35),
    "smollm2-135m": (0.1, 0.2, 0.35),
    "gemma-3-270m": (0.1, 0.2, 0.35, 0.5),
    "qwen2.5-coder-0.5b": (0.1, 0.2, 0.35),
}


@dataclass(frozen=True)
class Scored:
    """The texts of the benchmark."""

    n_bytes: int
    texts: Mapping[str, str]


def measure(part: str, model: str, source: ModelSource, options: PruneOptions, store: Cache, scored: Scored) -> None:
    """Compute the cells of a part that are not recorded yet."""
    cells = Cells(f"front-{part}-{model}", {"bytes_per_text": scored.n_bytes})
    if part == "ratios":
        _ratios(model, source, options, store, scored, cells)
        return
    context = Context(source, replace(options, split="auto", ratio=0.2), store, Console())
    original = original_of(context)
    search = _search(context, original)
    with search.trials:
        if part == "predictions":
            _predictions(model, search, cells)
        else:
            _fits(search, original, scored, cells)


def original_of(context: Context) -> Request:
    """The request for the unpruned model's artifact."""
    source = context.source
    return Request(
        label=ORIGINAL,
        checkpoint=source.directory,
        checkpoint_id=source.id,
        name=source.name,
        description=None,
        published=False,
        source=source,
        calibration=context.once(calibration_for),
        pre=source.pre,
    )


def _search(context: Context, original: Request) -> FrontSearch:
    profile = load_profile("gguf")
    wanted = Wanted(GgufFormat, profile, {}, None, SearchLimits())
    name = f"{context.source.name}-compact"
    return open_search(wanted, context, original, names=(name, ""), threads=1)


def _predictions(model: str, search: FrontSearch, cells: Cells) -> None:
    """Record the predicted loss of every cell of the types."""
    by_name: dict[str, StoredType] = {each.name: each for each in search.types}
    grid = search.curve.vocabulary
    for key, cell in recorded(f"front-{model}")["cells"].items():
        _, _, quant, embedding = key.split("|")
        name = f"{quant}, embedding {embedding}" if embedding else quant
        # The search does not try two types that give every tensor the same type.
        stored = by_name.get(name)
        if stored is None:
            continue
        vocab = min(grid, key=lambda size, cell=cell: abs(size - cell["vocab_size"]))  # type: ignore[misc]
        sizes = Sizes(vocab, cell["intermediate_size"])
        value = {
            "predicted": round(search.predictor.loss(sizes) + stored.loss, 5),
            "type_measured": name in search.type_losses.measured,
        }
        cells.get(key, lambda value=value: value)  # type: ignore[misc]


def _fits(search: FrontSearch, original: Request, scored: Scored, cells: Cells) -> None:
    """Search for several file sizes, and score what the search chooses."""
    whole = search.predictor.whole
    q8 = next(each for each in search.types if each.name == "Q8_0").sizes.file_bytes(whole)
    trials = Trials(search.context, original, scored.texts, threads=1)
    with trials:
        for share in SHARES:
            search.limits = SearchLimits(fit_bytes=round(share * q8))
            search.measured.clear()

            def make() -> dict[str, Any]:
                best = run_search(search)
                candidate = best.candidate
                texts = trials.score(candidate.sizes, candidate.type.search_type.format)
                return {
                    "fit_bytes": search.limits.fit_bytes,
                    "vocab_size": candidate.sizes.vocab_size,
                    "intermediate_size": candidate.sizes.intermediate_size,
                    "type": candidate.type.name,
                    "bytes": candidate.n_bytes,
                    "loss_in_search": round(best.loss, 4),
                    "bits_per_byte": {name: round(score.bits_per_byte, 4) for name, score in texts.items()},
                    "measured_in_search": len(search.measured),
                }

            cell = cells.get(f"{share:g}", make)
            print(share, cell, flush=True)


def _ratios(model: str, source: ModelSource, options: PruneOptions, store: Cache, scored: Scored, cells: Cells) -> None:
    whole = cells.get("unpruned", lambda: {"bits_per_byte": bits_per_byte(source.directory, scored.texts)})
    for ratio in RATIOS[model]:
        for split in ("proportional", None):
            chosen = replace(options, ratio=ratio, split=split)

            def make(chosen: PruneOptions = chosen) -> dict[str, Any]:
                plan = decide(Context(source, chosen, store, Console())).plan
                with tempfile.TemporaryDirectory(dir=default_root()) as work:
                    prune(source, plan, Path(work))
                    found = bits_per_byte(Path(work), scored.texts)
                return {
                    "vocab_size": plan.vocab_size,
                    "intermediate_size": plan.intermediate_size,
                    "bits_per_byte": found,
                }

            cell = cells.get(f"{ratio:g}|{split or 'predicted'}", make)
            before = whole["bits_per_byte"]
            losses = {name: round(math.log(bits / before[name]), 4) for name, bits in cell["bits_per_byte"].items()}
            print(model, ratio, split, cell["vocab_size"], cell["intermediate_size"], losses, flush=True)
