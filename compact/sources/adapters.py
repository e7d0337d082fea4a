"""Refuse adapters (LoRA and others of PEFT): they change a model and are not one."""

from __future__ import annotations

import json
from pathlib import Path

from compact.base.errors import DataError
from compact.checkpoints.names import CONFIG

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_base(config: Path) -> tuple[str, str]:
    """Return the kind of an adapter (`LORA`) and its base model, as `adapter_config.json` names them.

    The file is not trusted: the texts are cut, and other values give "an unknown kind" and "an unnamed model".
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


def adapter_error(directory: Path) -> DataError:
    """Return the error for a folder with `adapter_config.json`."""
    kind, base = adapter_base(directory / ADAPTER_CONFIG)
    what = f"an adapter{f' ({kind})' if kind else ''} of {base or 'a model that it does not name'}"
    merge = (
        f"AutoPeftModelForCausalLM.from_pretrained({str(directory)!r}).merge_and_unload().save_pretrained(NEW_FOLDER)"
    )
    if (directory / CONFIG).is_file() and any(
        path.name not in ADAPTER_WEIGHTS for pattern in ("*.safetensors", "*.bin") for path in directory.glob(pattern)
    ):
        return DataError(
            f"{directory}: a model, and {what} ({ADAPTER_CONFIG}); with PEFT installed, Transformers adds the adapter",
            f"merge it with PEFT's merge_and_unload and save the result; if the weights contain it already, "
            f"remove {ADAPTER_CONFIG}",
        )
    return DataError(
        f"{directory}: {what} ({ADAPTER_CONFIG}), not a model",
        f"merge it with PEFT and name the new folder: {merge}; save the tokenizer there too",
    )


def refuse_adapter(directory: Path) -> None:
    """Raise DataError if a folder has an adapter, alone or beside a model."""
    if (directory / ADAPTER_CONFIG).is_file():
        raise adapter_error(directory)
