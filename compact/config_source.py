"""A model known by its config.json alone: sizes and parameters without weights or tokenizer.

It may be a file or a directory without weights, a model on the Hub (of which only config.json is fetched), or a row of
the built-in table (`compact.published`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compact import hub
from compact.checkpoint_names import CONFIG
from compact.errors import DamagedFileError, ModelNotFoundError
from compact.families import family_of, text_family_of
from compact.family import Family
from compact.progress import SILENT, Progress
from compact.published import PublishedModel, close_names, published_model
from compact.source import BUILT_IN, check_layers, check_sizes, plain_name, refuse_auto_map, refuse_quantized
from compact.store import read_json_object

# Far above any model.
_LARGEST = 1 << 24
# What a directory with weights, ours to read or not, has; `open_source` judges it.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")


@dataclass(frozen=True)
class ConfigSource:
    """A configuration that passed every check.

    Attributes:
        name: the model's name without its path.
        origin: what the user named.
        config: config.json of the language model.
        family: the row of the family table.
        where: the file's path or the table's row, for messages.
        note: one line that the user should be told, or None.
        hub_id: Hub id of this very model where it is known, or None.
        commit: where it was fetched from the Hub, the commit.
        merges: of its tokenizer in a GGUF, where that is known.
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
    """What the user named, if its configuration is all that there is to read; None where `open_source` reads more.

    That is a checkpoint with weights, a GGUF, or a built-in model.

    Raises:
        ModelNotFoundError: nothing of that name.
        DataError: a subclass for every way in which a configuration can be refused.
        HubUnavailableError: the Hub cannot be reached, or gives no access (`compact.hub_errors`).
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
    """A row of the built-in table."""
    config = row.config()
    family = family_of(config, row.name)
    return ConfigSource(row.name, row.name, config, family, row.name, hub_id=row.hub_id, merges=row.merges)


def _of_file(path: Path, name: str, origin: str, progress: Progress) -> ConfigSource:
    config = read_json_object(path)
    inner = config.get("text_config")
    family = text_family_of(config)
    for part in (config, inner if isinstance(inner, dict) else {}):
        # Transformers builds a list of every layer's kind: sizes first.
        check_layers(part, path)
        refuse_auto_map(part, path)
        refuse_quantized(part, path)
    note = None
    if family is not None:
        from compact.multimodal import text_config

        # Transformers reads a file of any name, and config.json of a directory.
        config = text_config(path.parent if path.name == CONFIG else path, config, family)
        note = f"{name} is multimodal: only its language model is taken, images and sound are dropped"
        progress.note(note)
    family = family_of(config, str(path))
    check_sizes(config, path)
    check_layers(config, path)
    # No tensors bound what is worked out from these.
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        if config[key] > _LARGEST:
            raise DamagedFileError(f"{path}: {key} = {str(config[key])[:40]}, at most {_LARGEST} was expected")
    return ConfigSource(name, origin, config, family, str(path), note)
