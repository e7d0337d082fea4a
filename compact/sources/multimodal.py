"""Extract the language model of a multimodal checkpoint to a separate checkpoint.

Only the language model is pruned and exported. The vision tower and projector are left out, and the caller informs the
user. The spellings of tensor names that Transformers loads are supported: that of published files, which it also saves
(`language_model.model.*`), that of its modules in memory (`model.language_model.*`), and that of its base class
(`language_model.*`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.architectures.family import Family
from compact.base.errors import DamagedFileError, UnsupportedArchitectureError
from compact.base.files import read_json_object, write_json
from compact.base.licences import legal_files
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import (
    ADDED_TOKENS,
    CONFIG,
    GENERATION_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_MODEL,
)
from compact.checkpoints.safetensors_file import TensorRef
from compact.checkpoints.shards import open_tensors
from compact.checkpoints.writers import TensorSpec, write_checkpoint
from compact.sources.tensor_names import wrapper_hint
from compact.vocabulary.end_tokens import settle_end_ids
from compact.vocabulary.tokenizer import copy_chat_templates

if TYPE_CHECKING:
    import torch

# Modules outside the language model. First line: vision, sound, and their projections (Gemma 3 and 4). Second: Qwen3.5.
_OTHER_PARTS = (
    *("vision_tower", "multi_modal_projector", "audio_tower", "embed_vision", "embed_audio"),
    *("visual", "mtp"),
)
# Prefix in the multimodal checkpoint -> prefix in the language model, or None outside the language model. The first
# matching prefix decides.
_PREFIXES: tuple[tuple[str, str | None], ...] = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("language_model.", "model."),
    ("lm_head.", "lm_head."),
    *((f"{prefix}{part}.", None) for prefix in ("", "model.") for part in _OTHER_PARTS),
)
# Names of a language model alone, and the next step if config.json is that of a multimodal model.
_TEXT_NAMES = ("model.embed_tokens.", "model.layers.", "model.norm.")
_TEXT_ALONE = "the weights are those of a language model alone: use the config.json that was saved with them"
_FILES = (
    GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP,
    ADDED_TOKENS, TOKENIZER_MODEL, "README.md",
)  # fmt: skip
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def language_tensors(names: Iterable[str], where: str) -> dict[str, str]:
    """Return name in the language model -> name in the multimodal checkpoint, for every tensor of the language model.

    Raises:
        UnsupportedArchitectureError: a tensor belongs to an unknown part of the model.
        DamagedFileError: there is no tensor of a language model.
    """
    found: dict[str, str] = {}
    for name in names:
        prefix, own = next(((prefix, own) for prefix, own in _PREFIXES if name.startswith(prefix)), ("", None))
        if not prefix:
            raise UnsupportedArchitectureError(
                f"{where}: tensor {name!r} does not belong to a known part of a multimodal model",
                wrapper_hint(name, where) or (_TEXT_ALONE if name.startswith(_TEXT_NAMES) else None),
            )
        if own is not None:
            found[own + name.removeprefix(prefix)] = name
    if not found:
        raise DamagedFileError(
            f"{where}: no tensors of a language model", "download the model again with all of its files"
        )
    return found


def text_config(directory: Path, config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return config.json of the language model, with all defaults written out.

    Args:
        directory: the multimodal checkpoint. The caller has checked that its config.json needs no remote code.
        config: the content of that config.json.
        family: the row of the language model.

    Raises:
        DamagedFileError: Transformers cannot read the configuration.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        full = AutoConfig.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
        text: dict[str, Any] = full.get_text_config().to_dict()
    except (
        *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError, RecursionError),
        StrictDataclassError,
    ) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedFileError(f"{directory}: Transformers cannot read the configuration ({why})") from error
    text |= {key: config[key] for key in _IDS if config.get(key) is not None}
    dtype = config.get("dtype") or config.get("torch_dtype") or text.get("dtype")
    text |= {"architectures": [family.architecture], "model_type": family.model_type, "dtype": dtype}
    # Whether the head is tied is a setting of the whole model. Its class has the default.
    text["tie_word_embeddings"] = bool(full.tie_word_embeddings)
    return {key: value for key, value in text.items() if key not in ("_name_or_path", "transformers_version")}


def extract_language_model(
    directory: Path,
    config: Mapping[str, Any],
    names: Mapping[str, str],
    tensors: Mapping[str, TensorRef],
    out: Path,
    progress: Progress = SILENT,
) -> None:
    """Write the language model of a multimodal checkpoint into `out`, tensor by tensor.

    Args:
        directory: the multimodal checkpoint, in safetensors.
        config: the checked config.json of its language model (`text_config`).
        names: name in the language model -> stored name, checked against the layout.
        tensors: stored name -> location (`compact.sources.stored_weights`).
        out: an empty directory. The caller publishes it afterwards.
        progress: receives the number of tensors written.
    """
    write_json(out / CONFIG, config)
    specs = [TensorSpec(own, tensors[name].dtype, tensors[name].shape) for own, name in names.items()]
    with open_tensors(tensors) as read, progress.task("extracting the language model", len(specs), "tensors") as task:

        def produce(spec: TensorSpec) -> torch.Tensor:
            task.advance()
            return read(names[spec.name])

        write_checkpoint(out, specs, produce)
    for path in [*(directory / name for name in _FILES), *legal_files(directory)]:
        if path.is_file():
            shutil.copyfile(path, out / path.name)
    copy_chat_templates(directory, out)
    whole = read_json_object(directory / CONFIG)
    inner = whole.get("text_config")
    parts = (inner if isinstance(inner, dict) else {}, whole)
    settle_end_ids({key: value for part in parts for key, value in part.items() if value is not None}, config, out)
