"""The methods that `compare_methods.py` compares, one function for each.

A method takes a `Setting` (the model, the parameters to reach, the calibration) and writes a checkpoint. All methods
except depth pruning reach COMPACT's sizes at the ratio. Those that cut only the vocabulary or only FFN channels reach
the same number of parameters.

    python -m benchmarks.quality.methods NAME --ratio 0.2 --seed 0 --out DIR     # prints seconds and peak memory
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from benchmarks.common import cache, summary, texts_to_learn_from
from compact.base.cache import Cache, open_cache
from compact.base.errors import BudgetError
from compact.calibration.calibration_set import Calibration
from compact.decide import decide
from compact.forward.layerwise import LayerStream
from compact.pruning.apply import prune
from compact.pruning.budget import Sizes, count_parts, removed_parameters
from compact.pruning.budget_options import PROPORTIONAL
from compact.pruning.calibration_choice import calibration_for
from compact.pruning.context import Context
from compact.pruning.importance import collect_scores, top_channels
from compact.pruning.options import PruneOptions
from compact.pruning.plan import PLAN, PrunePlan, read_plan
from compact.pruning.planning import make_plan
from compact.pruning.ranking import rank_vocabulary
from compact.pruning.recover_options import RecoverOptions
from compact.pruning.sizes import sizes_of
from compact.sources.model_source import ModelSource, open_source
from compact_edge.cli.library_env import quiet_libraries
from compact_edge.terminal.console import Console

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[np.float64]]
# Distillation after the cut, on the texts of the calibration.
RECOVERY_TOKENS = 65_536
CALIBRATION_TOKENS = 16_384


@dataclass(frozen=True)
class Setting:
    """The task of a method.

    Attributes:
        source: the model.
        ratio: share of all parameters to remove.
        seed: of the calibration set and of the method's random numbers.
        stages: an empty cache, so that the time of every stage is measured.
    """

    source: ModelSource
    ratio: float
    seed: int
    stages: Cache

    @property
    def options(self) -> PruneOptions:
        """COMPACT's options at the ratio, calibrated on encyclopedic and technical text in equal shares."""
        return PruneOptions(
            ratio=self.ratio,
            split=PROPORTIONAL,
            channel_grid=32,
            calibration=tuple(texts_to_learn_from().values()),
            calibration_tokens=CALIBRATION_TOKENS,
            seed=self.seed,
        )

    @property
    def sizes(self) -> Sizes:
        """COMPACT's sizes at the ratio."""
        return sizes_of(self.source, rank_vocabulary(Context(self.source, self.options, self.stages)), self.options)

    @property
    def removed(self) -> int:
        """Parameters that COMPACT removes at the ratio."""
        whole = Sizes(self.source.vocab_size, self.source.intermediate_size)
        return removed_parameters(self.sizes, count_parts(self.source.tensors, self.source.config), whole)

    def calibration(self) -> Calibration:
        """COMPACT's calibration set."""
        return calibration_for(Context(self.source, self.options, self.stages))


Method = Callable[[Setting, Path], None]


def _of_options(change: Callable[[Setting], PruneOptions]) -> Method:
    """A method that is the product with other options."""

    def make(setting: Setting, out: Path) -> None:
        decision = decide(Context(setting.source, change(setting), setting.stages, Console()))
        prune(setting.source, decision.plan, out, updates=decision.updates)

    return make


def _of_scores(score: Callable[[Setting], Array]) -> Method:
    """A method with COMPACT's sizes and vocabulary, whose channels are chosen by another score [layers, channels]."""

    def make(setting: Setting, out: Path) -> None:
        sizes = setting.sizes
        # Plan the vocabulary only. With all channels kept, this needs no calibration.
        whole = replace(setting.options, ratio=None, split=None, vocab_size=sizes.vocab_size)
        plan: PrunePlan = make_plan(Context(setting.source, whole, setting.stages))
        channels = top_channels(score(setting), sizes.intermediate_size)
        prune(setting.source, replace(plan, kept_channels=channels), out)

    return make


def _unweighted_act2(setting: Setting) -> Array:
    """act² over every token, including those that are dropped."""
    source, rows = setting.source, setting.source.vocab_size
    found = collect_scores(source.directory, setting.calibration().sequences, [0] * rows, [rows])
    return found.at(rows)


class _Moments:
    """First and second moments of every channel (a `compact.forward.layerwise.Visitor`)."""

    def __init__(self, stream: LayerStream) -> None:
        shape = (stream.n_layers, stream.intermediate_size)
        self.sums, self.squares, self.count = np.zeros(shape), np.zeros(shape), np.zeros(stream.n_layers)

    def begin(self, layer: int) -> None:
        """Nothing to prepare."""

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        """Add a batch."""
        del batch
        wide = activations.double()
        self.sums[layer] += wide.sum(0).numpy()
        self.squares[layer] += wide.square().sum(0).numpy()
        self.count[layer] += wide.shape[0]

    def end(self, layer: int) -> None:
        """Nothing to close."""


def _fluctuation(setting: Setting) -> Array:
    """FLAP (arXiv 2312.11983), equation of WIFV: a channel's variance times the squared norm of its down column.

    FLAP's bias for the means of removed channels is left out, because a standard checkpoint has no tensor for it.
    """
    from compact.checkpoints.shards import open_tensors

    stream = LayerStream(setting.source.directory, setting.calibration().sequences, device="cpu")
    moments = _Moments(stream)
    stream.run(moments)
    count = moments.count[:, None]
    variance = moments.squares / count - (moments.sums / count) ** 2
    with open_tensors(setting.source.tensors) as read:
        norms = [
            read(f"model.layers.{n}.mlp.down_proj.weight").double().square().sum(0).numpy()
            for n in range(stream.n_layers)
        ]
    found: Array = variance * np.stack(norms)
    return found


def _depth(setting: Setting, out: Path) -> None:
    """ShortGPT (arXiv 2403.03853): drop the layers whose output is most similar to their input.

    Block influence of a layer is 1 minus the mean cosine of its input and output. The number of layers is the nearest
    to the ratio.
    """
    import torch

    from compact.forward.load import load_model
    from compact.vocabulary.tokenizer import load_tokenizer

    source = setting.source
    model = load_model(source.directory)
    similar = torch.zeros(source.num_hidden_layers, dtype=torch.float64)
    count = 0
    with torch.inference_mode():
        for sequence in setting.calibration().sequences:
            states = model.model(
                input_ids=torch.tensor([sequence]), output_hidden_states=True, use_cache=False
            ).hidden_states
            # The last state comes after the final norm. The norm changes the last layer's cosine only a little.
            for layer in range(source.num_hidden_layers):
                before, after = states[layer][0].double(), states[layer + 1][0].double()
                similar[layer] += torch.nn.functional.cosine_similarity(before, after, dim=-1).sum()
            count += len(sequence)
    per_layer = sum(p.numel() for p in model.model.layers[0].parameters())
    n_dropped = round(setting.removed / per_layer)
    dropped = set((1 - similar / count).argsort()[:n_dropped].tolist())
    kept = [layer for n, layer in enumerate(model.model.layers) if n not in dropped]
    model.model.layers = torch.nn.ModuleList(kept)
    if (types := getattr(model.config, "layer_types", None)) is not None:
        model.config.layer_types = [kind for n, kind in enumerate(types) if n not in dropped]
    model.config.num_hidden_layers = len(kept)
    dtype = {"F32": torch.float32, "F16": torch.float16}.get(next(iter(source.tensors.values())).dtype, torch.bfloat16)
    model.to(dtype).save_pretrained(out)
    load_tokenizer(source.directory).save_pretrained(out)


def _vocabulary_only(setting: Setting) -> PruneOptions:
    parts = count_parts(setting.source.tensors, setting.source.config)
    size = setting.source.vocab_size - round(setting.removed / parts.per_row)
    if size < len(rank_vocabulary(Context(setting.source, setting.options, setting.stages)).always):
        raise BudgetError("the vocabulary alone cannot give that much")
    return replace(setting.options, ratio=None, split=None, vocab_size=size)


def _ffn_only(setting: Setting) -> PruneOptions:
    parts = count_parts(setting.source.tensors, setting.source.config)
    exact = setting.source.intermediate_size - setting.removed / parts.per_channel
    inner = round(exact / 32) * 32
    if inner < 32:
        raise BudgetError("the FFN alone cannot give that much")
    return replace(setting.options, ratio=None, split=None, intermediate_size=inner)


def _with_recovery(setting: Setting) -> PruneOptions:
    text = tuple(texts_to_learn_from().values())
    recover = RecoverOptions(text=text, tokens=RECOVERY_TOKENS)
    return replace(setting.options, method="repair", recover=recover)


DISTILLED = "repair + distill"
# Methods of the product: name -> options.
OPTIONS: dict[str, Callable[[Setting], PruneOptions]] = {
    "COMPACT": lambda setting: setting.options,
    "repair": lambda setting: replace(setting.options, method="repair"),
    DISTILLED: _with_recovery,
    "vocabulary only": _vocabulary_only,
    "FFN only": _ffn_only,
    "magnitude": lambda setting: replace(setting.options, method="magnitude"),
    "random": lambda setting: replace(setting.options, method="random"),
}
METHODS: dict[str, Method] = {
    **{name: _of_options(change) for name, change in OPTIONS.items()},
    "act² without token weights": _of_scores(_unweighted_act2),
    "FLAP's fluctuation": _of_scores(_fluctuation),
    "depth (block influence)": _depth,
}
# Methods that draw nothing, so that all seeds give the same.
SEEDLESS: Sequence[str] = ("vocabulary only", "magnitude")


@click.command(help=summary(__doc__))
@click.argument("name", type=click.Choice(list(METHODS)))
@click.option("--model", default="smollm2-135m", show_default=True, help="Built-in name, directory or GGUF file.")
@click.option("--ratio", default=0.2, show_default=True, help="Share of all parameters to remove.")
@click.option("--seed", default=0, show_default=True, help="Seed of calibration and random numbers.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory of the checkpoint.")
def main(name: str, model: str, ratio: float, seed: int, out: Path) -> None:
    """Run one method into OUT. Prints one line of JSON: seconds and peak memory, or why the ratio is impossible."""
    quiet_libraries()
    source = open_source(model, cache())
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    start = time.monotonic()
    # Distillation takes an hour, so that it may come from the cache. Its history says how long it took.
    with open_cache(enabled=name == DISTILLED) as stages:
        try:
            METHODS[name](Setting(source, ratio, seed, stages), out)
        except BudgetError as error:
            print(json.dumps({"impossible": str(error)}))
            return
    cost = {"seconds": round(time.monotonic() - start, 1), "peak_bytes": peak_memory()}
    if name == DISTILLED and (recovery := read_plan(out / PLAN).recovery) is not None:
        trained = float(recovery["history"][-1]["seconds"])
        if trained > cost["seconds"]:  # trained by an earlier process, whose memory is not known
            cost = {"seconds": round(trained, 1)}
    print(json.dumps(cost))


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes (Linux).

    `getrusage` would also count the parent's memory at the time of the fork.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
