"""Maps the names that a checkpoint stores to those of the layout, as Transformers does when it loads a model.

Transformers removes or adds the prefix of its base class (`rename_source_key` of its `core_model_loading`), ties the
embedding to a stored output matrix if only that is stored (`tie_weights` of its `modeling_utils`), and ignores tensors
that the model does not have. It does not find names with the prefix of a wrapper, and fills the model with random
values instead. This module refuses such names and says which wrapper they come from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compact.architectures.family import Family
from compact.architectures.layout import OUTPUT, is_unused
from compact.base.errors import DamagedFileError
from compact.checkpoints.safetensors_file import TensorRef

EMBEDDING = "model.embed_tokens.weight"
_BASE = "model"
# Heads beside the language model: rewards, values, classes, and predictions of more tokens. Transformers ignores them.
_HEADS = ("v_head.", "value_head.", "score.", "classifier.", "medusa_head.", "medusa_heads.")
# Part of a name that a wrapper adds -> the wrapper, and where it keeps the model.
_WRAPPERS: Mapping[str, tuple[str, str]] = {
    "base_model.model.": ("PEFT", "model.merge_and_unload()"),
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "_fsdp_wrapped_module.": ("FSDP", "accelerator.unwrap_model(model)"),
    "_checkpoint_wrapped_module.": ("activation checkpointing", "accelerator.unwrap_model(model)"),
    "_forward_module.": ("Lightning Fabric", "model.module"),
    "pretrained_model.": ("TRL", "model.pretrained_model"),
    "module.": ("DataParallel or DeepSpeed", "model.module"),
}
_ORIGINAL = re.compile(r"^tok_embeddings\.|\.attention\.w[qkvo]\.|\.feed_forward\.w[123]\.")
_UNMERGED = re.compile(r"\.lora_[AB]\.|\.base_layer\.|\.modules_to_save\.|\.original_module\.")


@dataclass(frozen=True)
class Names:
    """How stored names map to the layout.

    Attributes:
        stored: name of the layout -> stored name.
        ignored: stored names that are not part of the model, and that Transformers ignores.
    """

    stored: Mapping[str, str]
    ignored: tuple[str, ...]

    @property
    def usual(self) -> bool:
        """Return whether every tensor has the name of the layout already, and none is left out."""
        return not self.ignored and all(name == stored for name, stored in self.stored.items())


def map_names(
    stored: Iterable[str], expected: Collection[str], family: Family, config: Mapping[str, Any], where: str
) -> Names:
    """Map stored names to those of the layout.

    A stored name that fits no tensor of the layout keeps its name, so that the check of the layout reports it.

    Args:
        stored: the names in the files.
        expected: the names of the layout (`compact.architectures.layout.expected_shapes`).
        family: the row of the family table.
        config: config.json with its sizes checked.
        where: the folder, for messages.

    Raises:
        DamagedFileError: two stored names map to the same tensor of the model.
    """
    known = {*expected, OUTPUT}
    found: dict[str, str] = {}
    ignored: list[str] = []
    for name in sorted(stored):
        own = _own_name(name, known, family)
        if own in known and own in found:
            raise DamagedFileError(
                f"{where}: tensors {found[own]!r} and {name!r} both map to {own!r} of the model",
                "remove the wrong one",
            )
        if own not in known and _is_ignored(name, own, family):
            ignored.append(name)
        else:
            found[own] = name
    if family.tied(config) and EMBEDDING not in found and OUTPUT in found:
        found[EMBEDDING] = found.pop(OUTPUT)
    return Names(found, tuple(ignored))


def _own_name(name: str, known: Collection[str], family: Family) -> str:
    if family.nested is not None and name.startswith(family.nested):
        name = f"{_BASE}.{name.removeprefix(family.nested)}"
    if name.startswith(_BASE) and (stripped := re.sub(rf"^{_BASE}.", "", name, count=1)) in known:
        return stripped
    return f"{_BASE}.{name}" if f"{_BASE}.{name}" in known else name


def _is_ignored(name: str, own: str, family: Family) -> bool:
    return name.startswith(_HEADS) or (family.nested is not None and own.startswith("model.visual."))


def unused_names(names: Names, family: Family, config: Mapping[str, Any]) -> set[str]:
    """Return the names of `names.stored` that Transformers ignores: buffers, and parts that `is_unused` names."""
    return {n for n in names.stored if is_unused(n, family, config) or is_unused(f"{_BASE}.{n}", family, config)}


def refuse_unmerged(tensors: Mapping[str, TensorRef]) -> None:
    """Raise DamagedFileError if an adapter of PEFT is stored with the weights. Transformers would ignore it.

    Args:
        tensors: stored name -> location.
    """
    name = next((name for name in sorted(tensors) if _UNMERGED.search(name)), None)
    if name is not None:
        raise DamagedFileError(
            f"{tensors[name].file}: tensor {name!r} is part of an adapter (LoRA) that is not merged into the weights",
            "merge it with PEFT: model.merge_and_unload().save_pretrained(NEW_FOLDER)",
        )


def refuse_wrapped(
    tensors: Mapping[str, TensorRef], expected: Collection[str], family: Family, config: Mapping[str, Any], where: str
) -> None:
    """Refuse names with the prefix of a wrapper, such as `_orig_mod.` of torch.compile.

    Args:
        tensors: stored name -> location.
        expected, family, config, where: as in `map_names`.

    Raises:
        DamagedFileError: without the prefix, every tensor of the layout is there.
    """
    original = next((name for name in sorted(tensors) if _ORIGINAL.search(name)), None)
    if original is not None:
        raise DamagedFileError(
            f"{tensors[original].file}: the tensor name {original!r} is from the maker's original format",
            "use the Hugging Face version of this model, which has the tensor names of Transformers",
        )
    inside = [part for part in _WRAPPERS if any(_inside(part).search(name) for name in tensors)]
    tries = [tuple(inside), *((prefix,) for prefix in _prefixes(tensors) if prefix not in inside)]
    for parts in tries:
        if not parts or not _complete_without(parts, tensors, expected, family, config):
            continue
        first = next(name for name in sorted(tensors) if any(_inside(part).search(name) for part in parts))
        wrapper = _WRAPPERS.get(parts[0], ("", ""))[0]
        raise DamagedFileError(
            f"{tensors[first].file}: tensor names have the prefix {parts[0]!r}"
            f"{f' of {wrapper}' if wrapper else ''} ({first!r}), so Transformers finds none of them",
            _without_prefix(parts, tensors, where),
        )


def _without_prefix(
    parts: Sequence[str], names: Collection[str], where: str, auto: str = "AutoModelForCausalLM"
) -> str:
    """Return the next step: how to save the model without the prefixes."""
    place = _WRAPPERS.get(parts[0], ("", "the model inside it"))[1]
    patterns = []
    for part in parts:
        # Transformers applies each pattern once per name. A wrapper of the model may also be one of a layer.
        if any(len(_inside(part).findall(name)) > 1 for name in names):
            patterns.append(f"^{re.escape(part)}")
        patterns.append(re.escape(part))
    mapping = ", ".join(f"r'{pattern}': ''" for pattern in patterns)
    return (
        f"save {place} with save_pretrained; or rename the tensors: {auto}.from_pretrained({where!r}, "
        f"key_mapping={{{mapping}}}).save_pretrained(NEW_FOLDER, save_original_format=False)"
    )


def wrapper_hint(name: str, where: str) -> str | None:
    """Return the next step if a tensor of a multimodal model has the prefix of a wrapper, or None."""
    parts = [part for part in _WRAPPERS if _inside(part).search(name)]
    return _without_prefix(parts, [name], where, "AutoModelForImageTextToText") if parts else None


def _inside(part: str) -> re.Pattern[str]:
    """Return the pattern of a prefix at the start of a name or of one of its parts."""
    return re.compile(rf"(?:^|(?<=\.)){re.escape(part)}")


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the prefixes with which stored names of the embedding begin, at most 4."""
    found: list[str] = []
    for name in names:
        if len(found) == 4:
            break
        for end in (EMBEDDING, EMBEDDING.removeprefix(f"{_BASE}.")):
            if name.endswith(f".{end}"):
                found.append(name.removesuffix(end))
                break
    return found


def _complete_without(
    parts: Collection[str],
    names: Iterable[str],
    expected: Collection[str],
    family: Family,
    config: Mapping[str, Any],
) -> bool:
    cleaned = set()
    for name in names:
        for part in parts:
            name = _inside(part).sub("", name)
        cleaned.add(name)
    try:
        found = map_names(cleaned, expected, family, config, "")
    except DamagedFileError:
        return False
    return all(name in found.stored for name in expected)
