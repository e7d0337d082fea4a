"""Writes a checkpoint directory as a folder for onnxruntime-genai and onnxruntime.

onnxruntime-genai's model builder writes the graph in a child process (`exporters.onnx.builder_child`).
`exporters.onnx.builder` corrects the builder where its graph differs from the model. The tokenizer's files are copied
from the checkpoint. Equal checkpoints and options give equal bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compact.architectures.family import Family
from compact.architectures.layout import check_shapes, is_buffer
from compact.base.errors import DamagedFileError, GateError, OutputExistsError, QuantizedCheckpointError
from compact.base.files import as_storage_error, check_free_space, publish, read_json_object, write_json
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import (
    ADDED_TOKENS,
    CONFIG,
    GENERATION_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from compact.checkpoints.safetensors_file import TensorRef
from compact.checkpoints.shards import stored_tensors
from compact.vocabulary.chat_templates import (
    DEFAULT,
    check_template_names,
    read_chat_templates,
    template_files,
    write_chat_templates,
)
from compact.vocabulary.loading import token_text, tokenizer_document, tokenizer_settings, truncation_side
from exporters.native.child import NativeChild
from exporters.onnx.folder import GENAI_CONFIG
from exporters.onnx.types import OnnxOptions, check_onnx

MODEL = "model.onnx"
DATA = "model.onnx.data"
_PAD = "pad_token_id"
# Copied unchanged if the checkpoint has them.
_COPIED = (CONFIG, GENERATION_CONFIG, TOKENIZER, SPECIAL_TOKENS_MAP)
_TORCH_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CRASH_HINT = "memory may have run out, because the builder loads the whole model; nothing was written"
_LIBRARY = "onnxruntime-genai's model builder"


def write_onnx(checkpoint: Path, folder: Path, options: OnnxOptions, *, progress: Progress = SILENT) -> None:
    """Write a checkpoint directory as a folder for onnxruntime-genai.

    The folder contains the graph, its weights, genai_config.json, config.json and the tokenizer's files. It appears
    complete or not at all, even if this process or the child is killed.

    Args:
        checkpoint: directory with config.json, tokenizer.json and safetensors weights.
        folder: target folder. It must not exist, or must be an empty directory.
        options: `onnx_options(...)`.
        progress: one step for each part of the model that is read, and one for writing.

    Raises:
        OutputExistsError: the folder is not empty.
        UsageError: the options do not fit this model.
        UnsupportedArchitectureError, MixtureOfExpertsError: an ONNX graph cannot express the model.
        QuantizedCheckpointError, PickleRefusedError, UnsafePathError: the weights are not plain safetensors.
        DamagedFileError: a file is malformed, or two files contradict each other.
        GateError: genai_config.json contradicts the checkpoint.
        ToolUnavailableError: onnxruntime-genai is missing or has the wrong version.
        EngineCrashedError: the builder died.
        StorageError: the folder cannot be written.
    """
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} already exists", "choose a new folder")
    where = str(checkpoint / CONFIG)
    config = read_json_object(checkpoint / CONFIG)
    family = check_onnx(options, config, where)
    stored = stored_tensors(checkpoint)
    tensors = {name: tensor for name, tensor in stored.items() if not is_buffer(name)}
    check_shapes(family, config, {name: tensor.shape for name, tensor in tensors.items()}, str(checkpoint))
    for tensor in tensors.values():
        if tensor.dtype not in _TORCH_TYPES:
            message = f"{checkpoint}: tensor {tensor.name!r} has dtype {tensor.dtype}"
            raise QuantizedCheckpointError(message, "use a checkpoint in float32, float16 or bfloat16")
    check_tokenizer_files(checkpoint)
    check_free_space(folder.parent, _bytes_needed(tensors.values(), options))
    with publish(folder, force=folder.is_dir()) as work:
        scratch = work / ".build"
        staged, built, cache = (scratch / name for name in ("checkpoint", "built", "cache"))
        for directory in (staged, built, cache):
            directory.mkdir(parents=True)
        # 1. Give the builder a view of the checkpoint with the right dtype.
        _stage(checkpoint, staged, config, stored)
        # 2. Build the graph and its weights in a child process, and move them to the output.
        _run_builder(checkpoint.name, options, config, staged=staged, built=built, cache=cache, progress=progress)
        for name in (MODEL, DATA):
            (built / name).rename(work / name)
        # 3. Check and write genai_config.json.
        _write_genai_config(checkpoint, built, work, config, family, options)
        # 4. Copy the tokenizer's files and remove the scratch folder.
        copy_tokenizer(checkpoint, work, read_json_object(work / GENAI_CONFIG)["model"]["context_length"])
        shutil.rmtree(scratch)


def check_tokenizer_files(checkpoint: Path) -> None:
    """Check the files that onnxruntime-genai needs.

    Raises:
        DamagedFileError: a file is missing, or a chat template is not text.
        UnsafePathError: a chat template has a name that a file cannot have.
    """
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        if not (checkpoint / name).is_file():
            raise DamagedFileError(f"{checkpoint}: {name} is missing", "copy the tokenizer's files into the checkpoint")
    check_template_names(checkpoint)


def _bytes_needed(tensors: Iterable[TensorRef], options: OnnxOptions) -> int:
    """Return an upper bound in bytes of the weights file without rotary tables."""
    bits = {"fp32": 32, "fp16": 16, "int8": 10, "int4": 10}[options.quant]
    return sum(tensor.n_elements for tensor in tensors) * bits // 8


def _stage(checkpoint: Path, staged: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorRef]) -> None:
    """Create a view of the checkpoint whose config.json has the dtype of the stored weights.

    The builder loads weights in the dtype of config.json. Otherwise it might round them.
    """
    types = {tensor.dtype for name, tensor in tensors.items() if not is_buffer(name)}
    dtype = _TORCH_TYPES[types.pop()] if len(types) == 1 else "float32"
    kept = {key: value for key, value in config.items() if key != "torch_dtype"}
    if _no_id(kept.get(_PAD)):
        del kept[_PAD]
    write_json(staged / CONFIG, {**kept, "dtype": dtype})
    weights = {tensor.file for tensor in tensors.values()}
    index = checkpoint / "model.safetensors.index.json"
    names = (GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS)
    for file in (*sorted(weights), index, *(checkpoint / name for name in names)):
        if file.is_file():
            _link(file.resolve(), staged / file.name)


def _link(source: Path, target: Path) -> None:
    """Link the file, or copy it if the system allows no link."""
    for way in (os.symlink, os.link, shutil.copyfile):
        try:
            way(source, target)
        except OSError as error:
            failure = error
        else:
            return
    raise as_storage_error(failure, target)


def _run_builder(
    name: str,
    options: OnnxOptions,
    config: Mapping[str, Any],
    *,
    staged: Path,
    built: Path,
    cache: Path,
    progress: Progress,
) -> None:
    request = {
        "op": "build",
        "checkpoint": os.fsencode(staged.resolve()).hex(),
        "folder": os.fsencode(built.resolve()).hex(),
        "cache": os.fsencode(cache.resolve()).hex(),
        "precision": options.quant,
        "provider": options.execution_provider,
        "extra": _extra_options(options),
    }
    # Embedding, layers, last norm, output matrix, and writing, which includes quantising.
    steps = int(config["num_hidden_layers"]) + 4
    child = NativeChild(
        "exporters.onnx.builder_child", f"{name} to ONNX {options.quant}", _CRASH_HINT, library=_LIBRARY
    )
    try:
        with progress.task(f"writing ONNX {options.quant}", steps, "steps") as task:
            child.ask(request, (), lambda _message: task.advance())
    except BaseException:
        # The child writes into the folder, so it must end before the folder is removed.
        child.kill()
        raise
    child.close()


def _extra_options(options: OnnxOptions) -> dict[str, str | int]:
    extra: dict[str, str | int] = {
        # Do not use the user's account, and do not run code from the checkpoint.
        "hf_token": "false",
        "hf_remote": "false",
        # A windowed cache of sliding-window layers could be filled only by onnxruntime-genai.
        "windowed_kv_cache": "false",
        # Norms inside GroupQueryAttention run only on some providers. The checks run on the CPU.
        "fuse_qk_norm_gqa": "false",
    }
    if options.quantized:
        extra |= {"algo_config": options.algorithm.method, "block_size": options.block_size}
        if options.algorithm.placement:
            pairs = (f"{selector}:{quant}" for selector, quant in options.algorithm.placement.items())
            extra["matmul_mixed_precision"] = ",".join(pairs)
        if options.accuracy_level is not None:
            extra["accuracy_level"] = options.accuracy_level
    return extra


def _write_genai_config(
    checkpoint: Path, built: Path, work: Path, config: Mapping[str, Any], family: Family, options: OnnxOptions
) -> None:
    """Check the builder's genai_config.json against the checkpoint, and write it with our `max_length`."""
    document = read_json_object(built / GENAI_CONFIG)
    model = document["model"]
    if isinstance(model.get("eos_token_id"), list):
        model["eos_token_id"] = [token for token in model["eos_token_id"] if not _no_id(token)]
        if _no_id(model.get(_PAD)):  # the builder takes the first end, which may be "none"
            model[_PAD] = model["eos_token_id"][0]
    check_genai_ids(checkpoint, document, config, family)
    context = int(document["model"]["context_length"])
    document["search"]["max_length"] = min(options.max_length or context, context)
    write_json(work / GENAI_CONFIG, document)


def check_genai_ids(checkpoint: Path, document: Mapping[str, Any], config: Mapping[str, Any], family: Family) -> None:
    """Compare vocabulary size and special tokens of a genai_config.json with the checkpoint.

    generation_config.json takes precedence over config.json. The builder may add the tokenizer's end token.

    Raises:
        GateError: a value differs.
    """
    model = document["model"]
    where = f"{checkpoint.name}: {GENAI_CONFIG}"
    size = int(config["vocab_size"])
    if model.get("vocab_size") != size:
        raise GateError(f"{where} has vocab_size {model.get('vocab_size')!r}, but the checkpoint has {size}")
    generation = checkpoint / GENERATION_CONFIG
    override = read_json_object(generation) if generation.is_file() else {}
    for key in ("bos_token_id", "eos_token_id", _PAD):
        configured = override.get(key)
        if configured is None:
            configured = config.get(key, family.default_ids.get(key))
        found, wanted = _ids(model.get(key)), {token for token in _ids(configured) if not _no_id(token)}
        fits = wanted <= found if key == "eos_token_id" else wanted in (set(), found)
        if not fits or not all(isinstance(value, int) and 0 <= value < size for value in found):
            hint = "check config.json and generation_config.json of the checkpoint"
            raise GateError(f"{where} has {key} {model.get(key)!r}, but the checkpoint has {configured!r}", hint)


def _no_id(token: Any) -> bool:
    """Return whether the value means that there is no such token. Older checkpoints use -1 for that."""
    return isinstance(token, int) and token < 0


def _ids(value: Any) -> set[Any]:
    return set(value) if isinstance(value, list) else set() if value is None else {value}


def copy_tokenizer(checkpoint: Path, work: Path, context: int) -> None:
    """Copy the checkpoint's tokenizer files, with `model_max_length` = `context`.

    If Transformers does not take tokenizer.json as it is, the tokenizer that it gives is written.
    """
    for name in _COPIED:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, work / name)
    document = tokenizer_document(checkpoint)
    if document != read_json_object(checkpoint / TOKENIZER):
        write_json(work / TOKENIZER, document)
    settings = _settle_chat_templates(checkpoint, work, _with_special_tokens(checkpoint))
    # Transformers writes "no limit" as an integer with 31 digits, which parsers in other languages cannot read.
    settings = {**truncation_side(checkpoint), **settings}
    write_json(work / TOKENIZER_CONFIG, {**settings, "model_max_length": context})


def _with_special_tokens(checkpoint: Path) -> dict[str, Any]:
    """Return tokenizer_config.json with the special tokens that Transformers takes from special_tokens_map.json.

    genai does not read that file.
    """
    written = read_json_object(checkpoint / TOKENIZER_CONFIG)
    other = {
        key: value
        for key, value in tokenizer_settings(checkpoint).items()
        if key.endswith("_token") and token_text(value) != token_text(written.get(key))
    }
    return {**written, **other}


def _settle_chat_templates(checkpoint: Path, work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Copy the chat templates, so that Transformers and genai find the same. Return the new tokenizer_config.json.

    genai prefers the template in tokenizer_config.json, reads only text there, and keeps Windows line ends, which Jinja
    does not. So that template stays only if both use it and read it alike. Otherwise all templates become `.jinja`
    files.
    """
    files, templates = template_files(checkpoint), read_chat_templates(checkpoint)
    own = settings.get("chat_template")
    if not files and own in (None, templates.get(DEFAULT)):
        return settings
    write_chat_templates(work, templates)
    if own == templates.get(DEFAULT):
        return settings
    return {key: value for key, value in settings.items() if key != "chat_template"}
