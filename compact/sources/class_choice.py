"""Chooses the architecture of a config.json as `AutoModelForCausalLM` does: by `model_type`, not by `architectures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compact.architectures.table import FAMILIES
from compact.base.errors import DamagedFileError

ARCHITECTURES, MODEL_TYPE = "architectures", "model_type"


def with_class(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return config.json with the architecture that Transformers chooses.

    `architectures` may be missing, or name the base class (`LlamaModel`) or a class that a wrapper made
    (`FSDPLlamaForCausalLM`). Other classes, such as classifiers, are kept, so that `family_of` refuses them.

    Args:
        config: the parsed file.
        where: its path, for messages.

    Raises:
        DamagedFileError: `model_type` is missing, or belongs to another architecture.
    """
    result = dict(config)
    names, kind = config.get(ARCHITECTURES), config.get(MODEL_TYPE)
    name = (names[0] if names else None) if isinstance(names, list) else names
    named = next((row for row in FAMILIES if row.architecture == name), None)
    chosen = next((row for row in FAMILIES if row.model_type == kind), None)
    if named is not None and named is not chosen:
        if kind is None:
            raise DamagedFileError(
                f"{where}: no {MODEL_TYPE}, so Transformers cannot choose a class",
                f'if {named.architecture} is right, add "{MODEL_TYPE}": "{named.model_type}"',
            )
        raise DamagedFileError(
            f"{where}: {ARCHITECTURES} is {named.architecture}, but {MODEL_TYPE} is {str(kind)[:40]!r}, which "
            "Transformers would use",
            f"if {named.architecture} is right, set {MODEL_TYPE} to {named.model_type!r}; otherwise correct "
            f"{ARCHITECTURES}",
        )
    if chosen is None or (named is chosen and isinstance(names, list)):
        return result
    base = chosen.architecture.replace("ForCausalLM", "Model")
    if name is None or name == base or (isinstance(name, str) and name.endswith(chosen.architecture)):
        result[ARCHITECTURES] = [chosen.architecture]
    return result
