"""Apply a plan: select rows and columns of the source's tensors, and write the tokenizer and configuration files.

Only one tensor is in memory at a time. The result is a standard Hugging Face directory. It loads with
`AutoModelForCausalLM` and `AutoTokenizer` and does not depend on this project.
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
from compact.checkpoints.safetensors_file import TensorRef
from compact.checkpoints.shards import open_tensors, read_shards
from compact.checkpoints.writers import TensorSpec, write_checkpoint
from compact.pruning.plan import PLAN, UPDATES, PrunePlan, check_plan
from compact.sources.model_source import ModelSource
from compact.vocabulary.end_tokens import settle_end_ids
from compact.vocabulary.loading import check_written_tokenizer
from compact.vocabulary.tokenizer import remap_config, write_pruned_tokenizer

if TYPE_CHECKING:
    import torch


def cut_of(name: str) -> tuple[int, int | None] | None:
    """Return (dimension, layer) along which a tensor is pruned, or None if it stays whole.

    `layer` is the number of the layer whose FFN channels are removed. It is None for a tensor with one row per token.

    Args:
        name: name of the tensor in the Hugging Face checkpoint.
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
    """Return (dimension, kept indices) for a tensor of the Hugging Face checkpoint, or None if it stays whole."""
    cut = cut_of(name)
    if cut is None:
        return None
    dim, layer = cut
    return dim, plan.kept_token_ids if layer is None else plan.kept_channels[layer]


def pruned_shape(name: str, shape: Sequence[int], plan: PrunePlan) -> tuple[int, ...]:
    """Return the shape of a tensor after pruning. `shape` is its shape in the source."""
    cut = selection(name, plan)
    return tuple(len(cut[1]) if cut is not None and cut[0] == dim else size for dim, size in enumerate(shape))


def prune(
    source: ModelSource,
    plan: PrunePlan,
    target: Path,
    *,
    updates: Path | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write the pruned checkpoint into `target`.

    Args:
        source: the checkpoint that the plan was made for.
        plan: which tokens and channels to keep.
        target: an empty directory, for example from `compact.base.files.publish`.
        updates: path of the `updates.safetensors` that the plan names, or None if it names none.
        progress: receives the number of tensors written.

    Raises:
        PlanMismatchError: the plan does not match the source, or the updates do not match the plan.
        DamagedFileError: Transformers does not give the pruned tokenizer from the written files, or the sizes of the
            checkpoint differ from those of the plan (a bug in compact-edge).
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
    config = read_json_object(target / CONFIG)
    check_written_tokenizer(target)
    if (config["vocab_size"], config["intermediate_size"]) != (plan.vocab_size, plan.intermediate_size):
        raise DamagedFileError(
            f"{target}: the sizes of the checkpoint differ from those of the plan",
            "this is a bug in compact-edge, please report it",
        )


def select(tensor: torch.Tensor, name: str, plan: PrunePlan) -> torch.Tensor:
    """Return the kept rows or columns of one tensor."""
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
        raise PlanMismatchError(f"the plan needs {UPDATES}, which is missing", f"put {UPDATES} beside {PLAN}")
    if sha256_file(updates) != plan.updates_sha256:
        raise PlanMismatchError(
            f"{updates}: not the file that the plan names (its sha256 differs)",
            f"use the {UPDATES} that was written with this plan",
        )
    tensors = read_shards([updates])
    for name, ref in tensors.items():
        if name not in source.tensors:
            raise PlanMismatchError(
                f"{updates}: tensor {name!r} is not in the model", f"use the {UPDATES} that was written with this plan"
            )
        expected = (source.tensors[name].dtype, pruned_shape(name, source.tensors[name].shape, plan))
        if (ref.dtype, ref.shape) != expected:
            raise PlanMismatchError(
                f"{updates}: {name} is {ref.dtype} {ref.shape}, expected {expected}",
                f"use the {UPDATES} that was written with this plan",
            )
    return tensors


def _write_configs(source: ModelSource, plan: PrunePlan, target: Path) -> None:
    new_id = {old: new for new, old in enumerate(plan.kept_token_ids)}
    config = remap_config(source.config, new_id, str(source.directory / CONFIG))
    for key, default in source.family.default_ids.items():
        # If the configuration lacks this key, Transformers uses the family's default id, which pruning may have moved.
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
    settle_end_ids(source.config, config, target)
