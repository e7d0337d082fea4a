"""Applying a plan: `index_select` over the source's tensors, one in memory at a time, and the files around them.

The result is a standard Hugging Face directory: it loads with `AutoModelForCausalLM` and `AutoTokenizer` and needs
nothing of this project.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from compact.architectures.layer_shapes import PER_LAYER_VOCABULARY
from compact.architectures.layout import EMBEDDINGS
from compact.base.errors import DamagedFileError, PlanMismatchError
from compact.base.files import read_json_object, sha256_file, write_json
from compact.base.licences import legal_files
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import CONFIG, GENERATION_CONFIG
from compact.checkpoints.shards import TensorRef, TensorSpec, open_tensors, read_shards, write_checkpoint
from compact.pruning.plan import PLAN, UPDATES, PrunePlan, check_plan
from compact.sources.model_source import ModelSource
from compact.vocabulary.tokenizer import remap_config, write_pruned_tokenizer

if TYPE_CHECKING:
    import torch


def cut_of(name: str) -> tuple[int, int | None] | None:
    """(dimension, layer) in which the tensor of an HF name is cut; None where it stays whole.

    The layer is that of the FFN whose channels go; None for what has a row a token.
    """
    if name in EMBEDDINGS:
        return 0, None
    if ".mlp." in name:
        layer = int(name.split(".")[2])
        part = name.split(".mlp.")[1]
        if part.startswith(("gate_proj.", "up_proj.")):
            return 0, layer
        if part == "down_proj.weight":
            return 1, layer
    return None


def selection(name: str, plan: PrunePlan) -> tuple[int, Sequence[int]] | None:
    """(dimension, indices) by which the tensor of an HF name is cut; None where it stays whole."""
    cut = cut_of(name)
    if cut is None:
        return None
    dim, layer = cut
    return dim, plan.kept_token_ids if layer is None else plan.kept_channels[layer]


def pruned_shape(name: str, shape: Sequence[int], plan: PrunePlan) -> tuple[int, ...]:
    """Shape of a tensor after its selection."""
    cut = selection(name, plan)
    return tuple(len(cut[1]) if cut is not None and cut[0] == dim else size for dim, size in enumerate(shape))


def apply_plan(
    source: ModelSource,
    plan: PrunePlan,
    target: Path,
    *,
    updates: Path | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write the pruned checkpoint into `target`, a directory that `compact.base.files.publish` yielded.

    Args:
        source: the checkpoint that the plan was made for.
        plan: what to keep.
        target: where the files go.
        updates: the `updates.safetensors` that the plan names, where it names one.
        progress: told of every tensor.

    Raises:
        PlanMismatchError: plan and source, or plan and updates, do not belong together.
    """
    check_plan(plan, source)
    replaced = _read_updates(plan, updates, source)
    specs = [TensorSpec(n, ref.dtype, pruned_shape(n, ref.shape, plan)) for n, ref in sorted(source.tensors.items())]
    with ExitStack() as stack:
        read = stack.enter_context(open_tensors(source.tensors))
        read_update = stack.enter_context(open_tensors(replaced))
        task = stack.enter_context(progress.task("pruning", len(specs), "tensors"))

        def produce(spec: TensorSpec) -> torch.Tensor:
            task.advance()
            if spec.name in replaced:
                return read_update(spec.name)
            return select(read(spec.name), spec.name, plan)

        write_checkpoint(target, specs, produce)
    _write_configs(source, plan, target)
    write_pruned_tokenizer(source.directory, target, plan.kept_token_ids)
    for path in legal_files(source.directory):
        shutil.copyfile(path, target / path.name)
    if updates is not None and replaced:
        shutil.copyfile(updates, target / UPDATES)
    plan.write(target / PLAN)


def select(tensor: torch.Tensor, name: str, plan: PrunePlan) -> torch.Tensor:
    """The kept rows or columns of one tensor."""
    import torch

    cut = selection(name, plan)
    if cut is None:
        return tensor
    dim, indices = cut
    return tensor.index_select(dim, torch.tensor(indices, dtype=torch.int64))


def _read_updates(plan: PrunePlan, updates: Path | None, source: ModelSource) -> dict[str, TensorRef]:
    if plan.updates_sha256 is None:
        return {}
    if updates is None or not updates.is_file():
        raise PlanMismatchError(f"the plan names an {UPDATES}, and it is not there", f"put {UPDATES} beside {PLAN}")
    if sha256_file(updates) != plan.updates_sha256:
        raise PlanMismatchError(f"{updates}: not the file that the plan names (its sha256 differs)")
    tensors = read_shards([updates])
    for name, ref in tensors.items():
        if name not in source.tensors:
            raise PlanMismatchError(f"{updates}: tensor {name!r} is not in the model")
        expected = (source.tensors[name].dtype, pruned_shape(name, source.tensors[name].shape, plan))
        if (ref.dtype, ref.shape) != expected:
            raise PlanMismatchError(f"{updates}: {name} is {ref.dtype} {ref.shape}, expected {expected}")
    return tensors


def _write_configs(source: ModelSource, plan: PrunePlan, target: Path) -> None:
    new_id = {old: new for new, old in enumerate(plan.kept_token_ids)}
    config = remap_config(source.config, new_id, str(source.directory / CONFIG))
    for key, default in source.family.default_ids.items():
        # Left out, Transformers would take the old id for it.
        if key not in config and new_id.get(default) != default:
            config[key] = new_id.get(default)
    config["vocab_size"] = plan.vocab_size
    config["intermediate_size"] = plan.intermediate_size
    if source.family.per_layer_inputs is not None:
        config[PER_LAYER_VOCABULARY] = plan.vocab_size
    write_json(target / CONFIG, config)
    generation = source.directory / GENERATION_CONFIG
    if generation.is_file():
        write_json(target / GENERATION_CONFIG, remap_config(read_json_object(generation), new_id, str(generation)))


def prune(
    source: ModelSource,
    plan: PrunePlan,
    target: Path,
    *,
    updates: Path | None = None,
    progress: Progress = SILENT,
) -> None:
    """Apply a plan into `target` (a directory that `compact.base.files.publish` yielded) and check what was written.

    Args:
        source: the checkpoint that the plan was made for.
        plan: what to keep.
        target: where the files go.
        updates: the `updates.safetensors` that the plan names, where it names one.
        progress: told of every tensor.

    Raises:
        DamagedFileError: a checkpoint of other sizes than the plan's came out, which would be a bug of ours.
    """
    apply_plan(source, plan, target, updates=updates, progress=progress)
    config = read_json_object(target / CONFIG)
    if (config["vocab_size"], config["intermediate_size"]) != (plan.vocab_size, plan.intermediate_size):
        raise DamagedFileError(f"{target}: the sizes written differ from the plan's")
