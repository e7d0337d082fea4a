"""Say what a file or folder is if no checkpoint can be opened there, and what the user can do.

Two questions are answered. `refuse_stand_in` looks at one file: it may be a pointer of a large-file store or a web page
instead of the file. `no_config` and `no_weights` look at a folder: it may be an adapter, an ONNX model or the output of
a training run.
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
from compact.checkpoints.names import (
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_MODEL,
)
from compact.checkpoints.shards import INDEX, SINGLE
from compact.sources.adapters import refuse_adapter

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Pickles that a training run leaves beside the weights.
_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")

_SMALL = (
    *(CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG),
    *(TOKENIZER_MODEL, CHAT_TEMPLATE, SPECIAL_TOKENS_MAP),
)
_HEAD_BYTES = 256
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = (b"/annex/objects/", b"../.git/annex/objects/", b".git/annex/objects/")
_PAGE = (b"<!doctype html", b"<html", b"<?xml")
# What servers answer in place of a file, as downloaders without a check of the status save it.
_ANSWERS = (
    *(b"entry not found", b"repository not found", b"access to model", b"invalid username or password"),
    *(b"invalid credentials", b"unauthorized", b"404: not found", b"too many requests"),
)
_JSON_OR_WEIGHTS = (".json", ".safetensors", ".gguf", ".model")
_STEP = re.compile(r"checkpoint-(\d+)")


def refuse_stand_in(path: Path) -> None:
    """Refuse a file that has other content than its name says, such as a pointer to the real file.

    A file that does not exist is accepted.

    Raises:
        DamagedFileError: the file is a pointer of Git LFS or git-annex, a broken link, a web page, an answer of a
            server, or empty.
        PickleRefusedError: the file is named like a safetensors file, but is a pickle of PyTorch.
    """
    if path.is_symlink() and not path.exists():
        raise _broken_link(path)
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return  # whoever reads the file says why it cannot be read
    if head.startswith(_LFS):
        raise DamagedFileError(
            f"{path}: a pointer of Git LFS, not the file itself", f"run `git lfs pull` in {path.parent}, then try again"
        )
    if head.startswith(_ANNEX):
        raise _not_fetched(path)
    if path.suffix.lower() not in _JSON_OR_WEIGHTS:
        return
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_PAGE):
        raise DamagedFileError(
            f"{path}: a web page, not the file itself",
            "download it again: on the Hub, the address of a file has /resolve/ where its page has /blob/, "
            "and a gated model needs `hf auth login`",
        )
    answer = next((answer for answer in _ANSWERS if start.startswith(answer)), None)
    if answer is not None:
        text = head.decode("utf-8", "replace").strip().splitlines()[0][:60]
        raise DamagedFileError(
            f"{path}: the answer of a server ({text!r}), not the file itself",
            "download it again; `hf download` stops if the Hub does not give the file",
        )
    if not head:
        raise DamagedFileError(f"{path}: the file is empty", "download it again")
    if path.suffix.lower() == ".safetensors":
        _refuse_other_weights(path, head)


def _refuse_other_weights(path: Path, head: bytes) -> None:
    if head[8:9] == b"{":  # the JSON header, after its length, which may be any 8 bytes
        return
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise PickleRefusedError(
            f"{path}: a pickle of PyTorch named like a safetensors file, and loading a pickle can run code",
            "convert it to safetensors with a tool that you trust, then try again",
        )
    if head.startswith(b"GGUF"):
        raise DamagedFileError(f"{path}: a GGUF file, not a safetensors file", "rename it to .gguf and name that file")


def _broken_link(path: Path) -> DamagedFileError:
    target = path.readlink().as_posix()
    if "annex/objects" in target:
        return _not_fetched(path)
    if "blobs/" in target:
        return DamagedFileError(
            f"{path}: a link into a Hub cache that does not have the file ({target[:80]})",
            "download the model again with `hf download`, or copy its folder with `cp -rL`, which follows links",
        )
    return DamagedFileError(f"{path}: a broken link to {target[:80]}", "put the file in place of the link")


def _not_fetched(path: Path) -> DamagedFileError:
    return DamagedFileError(
        f"{path}: a pointer of git-annex, not the file itself", f"run `git annex get {path.name}` in {path.parent}"
    )


def refuse_other_folder(directory: Path) -> None:
    """Refuse a folder that cannot be a checkpoint, before any of its files is parsed.

    Raises:
        DataError: the folder has an adapter (`compact.sources.adapters`) or no config.json (`no_config`), or a file
            is a pointer to the real one (`refuse_stand_in`).
    """
    refuse_adapter(directory)
    for name in _SMALL:
        refuse_stand_in(directory / name)
    if not (directory / CONFIG).is_file():
        raise no_config(directory)


def _ggufs(directory: Path) -> list[Path]:
    found = (path for path in directory.iterdir() if path.suffix.lower() == ".gguf")
    return sorted(path for path in found if not path.name.lower().startswith("mmproj"))


def pickled_weights(names: Iterable[str]) -> str | None:
    """Return the first file name of pickled weights, or None. The state of a training run does not count."""
    return min((name for name in names if name.endswith(_PICKLED) and not name.startswith(_STATE)), default=None)


def no_config(directory: Path) -> CompactEdgeError:
    """Return the error for a folder without `config.json`: what the folder is, and what to do."""
    kind, what, step = _look(directory) or (
        ModelNotFoundError,
        "",
        "name a folder with config.json, tokenizer.json and safetensors weights, as `save_pretrained` writes it",
    )
    return kind(f"{directory}: no {CONFIG}{'; ' if what else ''}{what}", step)


def no_weights(directory: Path) -> CompactEdgeError:
    """Return the error for a folder with `config.json` but without safetensors: what it is, and what to do."""
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
        "the directory must contain safetensors weights: download the model again, with all of its files",
    )
    return kind(f"{directory}: no {SINGLE} and no {INDEX}{'; ' if what else ''}{what}", step)


Answer = tuple[type[DataError], str, str]


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
    return DamagedFileError, f"{name} is a pointer of DVC", f"run `dvc pull` in {directory}, then try again"


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
        (("tf_model.h5", "flax_model.msgpack", "rust_model.ot"), "a checkpoint of TensorFlow, Flax or Rust"),
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
    return DataError, f"it is the output of a training run ({names})", f"name one of its steps, such as {max(steps)[1]}"


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
        return DataError, "it belongs to Ollama (Modelfile)", "name the GGUF file that FROM in its Modelfile names"
    return None


def _inside(directory: Path) -> Answer | None:
    folders = sorted(path.parent for path in directory.glob(f"*/{CONFIG}"))
    if not folders or (directory / CONFIG).is_file():
        return None
    names = ", ".join(folder.name for folder in folders[:3]) + (", ..." if len(folders) > 3 else "")
    return ModelNotFoundError, f"its subfolders have one ({names})", f"name one of them, such as {folders[0]}"


def _weights_alone(directory: Path) -> Answer | None:
    if (directory / CONFIG).is_file():
        return None
    if (name := _first(directory, ("*.safetensors",))) is not None:
        step = f"put {CONFIG} and the tokenizer of the same model beside {name}"
        return ModelNotFoundError, f"it has weights alone ({name})", step
    if (name := pickled_weights(path.name for path in directory.iterdir())) is not None:
        return PickleRefusedError, f"it has only pickled weights ({name})", "name a model with safetensors weights"
    return None
