"""Says what a folder is if it is not a checkpoint that can be opened, and what the user can do.

It may be an adapter, an ONNX model, the output of a training run, and so on. The errors of `no_config` and `no_weights`
name it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    DataError,
    ModelNotFoundError,
    PickleRefusedError,
)
from compact.checkpoints.names import CONFIG, SMALL_FILES
from compact.checkpoints.shards import INDEX, SINGLE
from compact.sources.adapters import refuse_adapter
from compact.sources.stand_ins import refuse_stand_in

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Beginnings of the names of pickles that a training run leaves beside the weights.
_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")
_STEP = re.compile(r"checkpoint-(\d+)")
# Error class, what the folder is, next step.
Answer = tuple[type[DataError], str, str]


def refuse_other_folder(directory: Path) -> None:
    """Refuse a folder that cannot be a checkpoint, before any of its files is parsed.

    Raises:
        DataError: the folder has an adapter (`refuse_adapter`) or no config.json (`no_config`), or a file is not what
            its name says (`refuse_stand_in`).
    """
    refuse_adapter(directory)
    for name in SMALL_FILES:
        refuse_stand_in(directory / name)
    if not (directory / CONFIG).is_file():
        raise no_config(directory)


def _ggufs(directory: Path) -> list[Path]:
    found = (path for path in directory.iterdir() if path.suffix.lower() == ".gguf")
    return sorted(path for path in found if not path.name.lower().startswith("mmproj"))


def pickled_weights(names: Iterable[str]) -> str | None:
    """Return the first name of a file of pickled weights, or None. The state of a training run does not count."""
    return min((name for name in names if name.endswith(_PICKLED) and not name.startswith(_STATE)), default=None)


def no_config(directory: Path) -> CompactEdgeError:
    """Return the error for a folder without `config.json`. It says what the folder is and what to do."""
    kind, what, step = _look(directory) or (
        ModelNotFoundError,
        "",
        "name a folder with config.json, tokenizer.json and safetensors weights, as `save_pretrained` writes it",
    )
    return kind(f"{directory}: no {CONFIG}{'; ' if what else ''}{what}", step)


def no_weights(directory: Path) -> CompactEdgeError:
    """Return the error for a folder with `config.json` but without safetensors. It says what it is and what to do."""
    pickled = pickled_weights(path.name for path in directory.iterdir())
    if pickled is not None and not _training_state(directory):
        return PickleRefusedError(
            f"{directory}: only pickled weights ({pickled}), and loading a pickle can run code",
            "if you trust them, convert them to safetensors in a separate environment, for example with "
            f"AutoModelForCausalLM.from_pretrained({str(directory)!r}).save_pretrained(NEW_FOLDER)",
        )
    kind, what, step = _look(directory) or (
        DamagedFileError,
        "",
        "download the model again with all of its files; the weights must be safetensors files",
    )
    return kind(f"{directory}: no {SINGLE} and no {INDEX}{'; ' if what else ''}{what}", step)


def _look(directory: Path) -> Answer | None:
    looks: tuple[Callable[[Path], Answer | None], ...] = (
        *(_pointer_file, _several_ggufs, _exported, _original, _steps, _cache, _training_state, _other),
        *(_inside, _weights_alone),
    )
    return next((answer for look in looks if (answer := look(directory)) is not None), None)


def _first(directory: Path, patterns: Iterable[str]) -> str | None:
    return min((path.name for pattern in patterns for path in directory.glob(pattern)), default=None)


def _pointer_file(directory: Path) -> Answer | None:
    name = _first(directory, ("*.dvc",))
    if name is None:
        return None
    return DamagedFileError, f"{name} is a DVC pointer", f"run `dvc pull` in {directory}, then try again"


def _several_ggufs(directory: Path) -> Answer | None:
    files = _ggufs(directory)
    if not files:
        return None
    names = ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")
    return DataError, f"it has GGUF files ({names})", f"name one of them, such as {files[-1]}"


def _exported(directory: Path) -> Answer | None:
    forms = (
        (("genai_config.json", "*.onnx", "onnx/*.onnx"), "an ONNX model"),
        (("openvino_model.xml",), "an OpenVINO model"),
        (("*.mlpackage", "*.mlmodelc"), "a Core ML model"),
        (("*.tflite", "*.litertlm", "*.task"), "a LiteRT model"),
        (("tf_model.h5", "flax_model.msgpack", "rust_model.ot"), "a TensorFlow, Flax or Rust checkpoint"),
    )
    for patterns, what in forms:
        if (name := _first(directory, patterns)) is not None:
            return DataError, f"it is {what} ({name})", "name the safetensors checkpoint that it was made from"
    return None


def _original(directory: Path) -> Answer | None:
    name = _first(directory, ("consolidated*.pth", "consolidated*.safetensors"))
    if name is None or not (directory / "params.json").is_file():
        return None
    return (
        PickleRefusedError if name.endswith(".pth") else DataError,
        f"it has the maker's original format ({name}, params.json)",
        "name the Hugging Face version of this model, whose folder has config.json and model*.safetensors",
    )


def _steps(directory: Path) -> Answer | None:
    steps = [(int(match[1]), path) for path in directory.iterdir() if (match := _STEP.fullmatch(path.name))]
    if not steps:
        return None
    names = ", ".join(path.name for _, path in sorted(steps)[-3:])
    return (
        DataError,
        f"it is the output of a training run ({names})",
        f"name one of its checkpoints, such as {max(steps)[1]}",
    )


def _cache(directory: Path) -> Answer | None:
    commits = sorted(path for path in directory.glob("snapshots/*") if path.is_dir())
    if not commits:
        return None
    return DataError, "it is a model's folder in the Hub cache", f"name its snapshot: {commits[-1]}"


def _training_state(directory: Path) -> Answer | None:
    name = _first(directory, ("zero_to_fp32.py", "global_step*", "*.distcp", "pytorch_model_fsdp*"))
    if name is None:
        return None
    step = (
        f"write the weights with `python zero_to_fp32.py . NEW_FOLDER --safe_serialization` in {directory}"
        if (directory / "zero_to_fp32.py").is_file()
        else "write the weights with `accelerate merge-weights`, or save the model at the end of the training"
    )
    return DataError, f"it is the state of a distributed training run ({name})", step


def _other(directory: Path) -> Answer | None:
    if (directory / "model_index.json").is_file():
        return DataError, "it is a diffusion pipeline (model_index.json)", "name a causal language model"
    if (directory / "Modelfile").is_file():
        return DataError, "it belongs to Ollama (Modelfile)", "name the GGUF file in the FROM line of its Modelfile"
    return None


def _inside(directory: Path) -> Answer | None:
    folders = sorted(path.parent for path in directory.glob(f"*/{CONFIG}"))
    if not folders or (directory / CONFIG).is_file():
        return None
    names = ", ".join(folder.name for folder in folders[:3]) + (", ..." if len(folders) > 3 else "")
    return ModelNotFoundError, f"it has subfolders with one ({names})", f"name one of them, such as {folders[0]}"


def _weights_alone(directory: Path) -> Answer | None:
    if (directory / CONFIG).is_file():
        return None
    if (name := _first(directory, ("*.safetensors",))) is not None:
        step = f"put {CONFIG} and the tokenizer of the same model beside {name}"
        return ModelNotFoundError, f"it has only weights ({name})", step
    if (name := pickled_weights(path.name for path in directory.iterdir())) is not None:
        return PickleRefusedError, f"it has only pickled weights ({name})", "name a model with safetensors weights"
    return None
