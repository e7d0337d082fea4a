"""Open a model by its config.json alone, without weights or tokenizer.

The configuration may come from a file, a directory without weights, a model on the Hub (only config.json is
downloaded), or the built-in table (`compact.architectures.published`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compact.architectures.family import Family
from compact.architectures.published import PublishedModel, close_names, published_model
from compact.architectures.table import family_of, text_family_of
from compact.base.errors import DamagedFileError, ModelNotFoundError
from compact.base.files import read_json_object
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import CONFIG
from compact.sources import hub
from compact.sources.class_choice import ARCHITECTURES, with_class
from compact.sources.model_source import (
    BUILT_IN,
    check_layers,
    check_sizes,
    plain_name,
    refuse_auto_map,
)
from compact.sources.quantization import refuse_quantized
from compact.sources.stand_ins import refuse_stand_in

# The largest size to accept; far above that of any model.
_LARGEST = 1 << 24
# A directory with one of these has weights, so `open_source` opens it or rejects it.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")


@dataclass(frozen=True)
class ConfigSource:
    """A configuration that passed every check.

    Attributes:
        name: the model's name without its path.
        origin: the model as the user named it.
        config: config.json of the language model.
        family: the row of the family table.
        where: the file's path or the table's row, for messages.
        note: one line to show to the user, or None.
        hub_id: Hub id of exactly this model, or None if unknown.
        commit: commit on the Hub, or None if the model is not from the Hub.
        merges: number of merges of its tokenizer in a GGUF, or None if unknown.
    """

    name: str
    origin: str
    config: Mapping[str, Any]
    family: Family
    where: str
    note: str | None = None
    hub_id: str | None = None
    commit: str | None = None
    merges: int | None = None


def open_config(model: str, progress: Progress = SILENT) -> ConfigSource | None:
    """Open a model by its configuration.

    Args:
        model: a directory, a config.json, a Hub model, or a name in the built-in table.
        progress: receives notes for the user.

    Returns:
        The configuration. None if `open_source` can open the model with more than its configuration: a checkpoint with
        weights, a GGUF, or a built-in model.

    Raises:
        ModelNotFoundError: nothing has that name.
        DataError: the configuration is damaged or not supported. Every reason has its own subclass.
        HubUnavailableError: the Hub cannot be reached, or denies access (see `compact.sources.hub_errors`).
    """
    path = Path(model).expanduser()
    if model in BUILT_IN:
        return None
    if path.is_dir():
        if not (path / CONFIG).is_file() or any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
            return None
        return _of_file(path / CONFIG, plain_name(path.resolve().name), model, progress)
    if path.is_file():
        if path.suffix.lower() != ".json":
            return None
        name = path.resolve().parent.name if path.name == CONFIG else path.stem
        return _of_file(path, plain_name(name), model, progress)
    if (row := published_model(model)) is not None:
        return config_of_row(row)
    if (named := hub.parse_model(model)) is not None:
        snapshot = hub.fetch_config(named, progress)
        source = _of_file(snapshot.directory / CONFIG, plain_name(named.name), model, progress)
        return replace(source, hub_id=named.repo, commit=snapshot.commit)
    close = close_names(model)
    raise ModelNotFoundError(
        f"{model}: no such directory, file or model",
        f"did you mean {' or '.join(map(repr, close))}?"
        if close
        else "name a directory, a config.json, a .gguf file, a Hub model (org/name), or a model of "
        "`compact-edge inspect --list`",
    )


def config_of_row(row: PublishedModel) -> ConfigSource:
    """Return the configuration of a row in the built-in table."""
    config = row.config()
    family = family_of(config, row.name)
    return ConfigSource(row.name, row.name, config, family, row.name, hub_id=row.hub_id, merges=row.merges)


def _of_file(path: Path, name: str, origin: str, progress: Progress) -> ConfigSource:
    refuse_stand_in(path)
    config = read_json_object(path)
    inner = config.get("text_config")
    family = text_family_of(config)
    for part in (config, inner if isinstance(inner, dict) else {}):
        # Check sizes first: Transformers builds a list with one entry per layer.
        check_layers(part, path)
        refuse_auto_map(part, path)
        refuse_quantized(part, path)
    note = None
    if family is not None:
        from compact.sources.multimodal import text_config

        # Transformers reads config.json of a directory, or a file of any name.
        config = text_config(path.parent if path.name == CONFIG else path, config, family)
        note = f"{name} is multimodal: only its language model is taken, images and sound are dropped"
        progress.note(note)
    if config.get(ARCHITECTURES):  # a configuration alone must say which model it is of
        config = with_class(config, str(path))
    family = family_of(config, str(path))
    check_sizes(config, path)
    check_layers(config, path)
    # There are no tensors to check these sizes against, so bound them.
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        if config[key] > _LARGEST:
            raise DamagedFileError(f"{path}: {key} = {str(config[key])[:40]}, expected at most {_LARGEST}")
    return ConfigSource(name, origin, config, family, str(path), note)
