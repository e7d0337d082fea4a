"""The language model of a multimodal checkpoint, as a checkpoint of its own.

Only the language model is pruned and exported: vision tower and projector stay behind, and the user is told. Both
spellings of the tensor names are known: that of the published files, which Transformers also saves
(`language_model.model.*`), and that of its modules in memory (`model.language_model.*`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.checkpoint import TensorSpec, open_tensors, read_index, write_checkpoint
from compact.errors import DamagedFileError, UnsupportedArchitectureError
from compact.family import Family
from compact.licences import legal_files
from compact.progress import SILENT, Progress
from compact.store import write_json
from compact.tokenizer import copy_chat_templates

if TYPE_CHECKING:
    import torch

# Vision, sound, what leads from them into the language model (Gemma 3; Gemma 4), and what Qwen3.5 has beside it.
_OTHER_PARTS = (
    *("vision_tower", "multi_modal_projector", "audio_tower", "embed_vision", "embed_audio"),
    *("visual", "mtp"),
)
# In this order: the first prefix that fits decides. None: not a part of the language model.
_PREFIXES: tuple[tuple[str, str | None], ...] = (
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
    *((f"{prefix}{part}.", None) for prefix in ("", "model.") for part in _OTHER_PARTS),
)
_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.model", "README.md",
)  # fmt: skip
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def language_tensors(names: Iterable[str], where: str) -> dict[str, str]:
    """Name in the language model -> name in the multimodal checkpoint, for every tensor of the language model.

    Raises:
        UnsupportedArchitectureError: a tensor of a part that is not known.
        DamagedFileError: no language model in it.
    """
    found: dict[str, str] = {}
    for name in names:
        prefix, own = next(((prefix, own) for prefix, own in _PREFIXES if name.startswith(prefix)), ("", None))
        if not prefix:
            raise UnsupportedArchitectureError(
                f"{where}: tensor {name!r} belongs to no known part of a multimodal model"
            )
        if own is not None:
            found[own + name.removeprefix(prefix)] = name
    if not found:
        raise DamagedFileError(f"{where}: no tensors of a language model")
    return found


def text_config(directory: Path, config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """config.json of the language model, with what the multimodal file leaves to defaults written out.

    Args:
        directory: the multimodal checkpoint; its config.json asks for no code of its own.
        config: that file.
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
    # The multimodal file says for the whole model whether the head is the embedding, or the class does.
    text["tie_word_embeddings"] = bool(full.tie_word_embeddings)
    return {key: value for key, value in text.items() if key not in ("_name_or_path", "transformers_version")}


def extract_language_model(directory: Path, config: Mapping[str, Any], out: Path, progress: Progress = SILENT) -> None:
    """Write the language model of a multimodal checkpoint into `out`, tensor by tensor.

    Args:
        directory: the multimodal checkpoint, in safetensors.
        config: config.json of its language model (`text_config`), checked.
        out: an empty directory, which the caller publishes when this returns.
        progress: told the tensors done.

    Raises:
        UnsupportedArchitectureError, DamagedFileError, PickleRefusedError: as the functions above and `read_index`.
    """
    tensors = read_index(directory)
    names = language_tensors(tensors, str(directory))
    write_json(out / "config.json", config)
    specs = [TensorSpec(own, tensors[name].dtype, tensors[name].shape) for own, name in names.items()]
    with open_tensors(tensors) as read, progress.task("taking the language model", len(specs), "tensors") as task:

        def produce(spec: TensorSpec) -> torch.Tensor:
            task.advance()
            return read(names[spec.name])

        write_checkpoint(out, specs, produce)
    for path in [*(directory / name for name in _FILES), *legal_files(directory)]:
        if path.is_file():
            shutil.copyfile(path, out / path.name)
    copy_chat_templates(directory, out)
