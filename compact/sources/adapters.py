"""Refuses adapters (LoRA and others of PEFT). An adapter changes a model, but is not a model."""

from __future__ import annotations

import json
from pathlib import Path

from compact.base.errors import DataError
from compact.checkpoints.names import CONFIG

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_base(config: Path) -> tuple[str, str]:
    """Return the kind of an adapter (`LORA`) and the name of its base model, from `adapter_config.json`.

    The file is not trusted: long texts are shortened, and values of other types give empty texts.
    """
    try:
        value = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        value = {}
    fields = value if isinstance(value, dict) else {}
    kind, base = fields.get("peft_type"), fields.get("base_model_name_or_path")
    return (
        " ".join(kind.split())[:20] if isinstance(kind, str) and kind else "",
        " ".join(base.split())[:120] if isinstance(base, str) and base else "",
    )


def adapter_error(where: str, config: Path, *, beside_model: bool) -> DataError:
    """Return the error for an adapter that was named as a model.

    Args:
        where: the folder or repository, as PEFT would open it.
        config: its adapter_config.json.
        beside_model: whether a whole model is there too.
    """
    kind, base = adapter_base(config)
    what = f"an adapter{f' ({kind})' if kind else ''} for {base or 'a model that it does not name'}"
    if beside_model:
        return DataError(
            f"{where}: contains both a model and {what} ({ADAPTER_CONFIG}); Transformers applies the adapter if PEFT "
            "is installed",
            "merge the adapter with PEFT's merge_and_unload, save the result and name its folder; "
            f"if it is merged already, remove {ADAPTER_CONFIG}",
        )
    return DataError(
        f"{where}: {what} ({ADAPTER_CONFIG}), not a model",
        f"merge it into its model and name NEW_FOLDER: AutoPeftModelForCausalLM.from_pretrained({where!r})"
        ".merge_and_unload().save_pretrained(NEW_FOLDER); save the tokenizer there too",
    )


def refuse_adapter(directory: Path) -> None:
    """Raise DataError if a folder has an adapter, alone or beside a model."""
    if (directory / ADAPTER_CONFIG).is_file():
        weights = (path.name for pattern in ("*.safetensors", "*.bin") for path in directory.glob(pattern))
        whole = (directory / CONFIG).is_file() and any(name not in ADAPTER_WEIGHTS for name in weights)
        raise adapter_error(str(directory), directory / ADAPTER_CONFIG, beside_model=whole)
