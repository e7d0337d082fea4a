"""Finds tasks of a folder that need no network. This runs before importing libraries that may use the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Readers of local files in `datasets`. Any other name refers to a data set on the Hub.
_READERS = frozenset({"json", "csv", "parquet", "arrow", "text"})


def need_hub(names: Sequence[str], include_path: Path | None) -> bool:
    """Return whether any of the tasks may have its data on the Hub. Assume so unless its data are known to be local."""
    local = {} if include_path is None else _configurations(include_path)
    return not all(_is_local(name, local, frozenset()) for name in names)


def _is_local(name: str, configurations: Mapping[str, Mapping[str, Any]], above: frozenset[str]) -> bool:
    found = configurations.get(name)
    if found is None or name in above:
        return False
    members = found.get("task")
    if "group" in found or isinstance(members, list):
        members = members if isinstance(members, list) else [members]
        return all(isinstance(each, str) and _is_local(each, configurations, above | {name}) for each in members)
    data = found.get("dataset_path")
    if data is None:
        return "custom_dataset" in found
    return isinstance(data, str) and (data in _READERS or Path(data).is_dir())


def _configurations(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return task or group -> its configuration with includes. Unreadable files are skipped; lm_eval reports them."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("**/*.yaml")):
        content = _read(path, 8)
        for key in ("group", "task"):
            if isinstance(content.get(key), str):
                found.setdefault(str(content[key]), content)
                break
    return found


def _read(path: Path, depth: int) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
        """Reads the name of a function as text and imports nothing."""

    Loader.add_constructor("!function", lambda _loader, node: str(node.value))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506  (a SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    if not isinstance(content, dict):
        return {}
    includes = content.get("include", ())
    base: dict[str, Any] = {}
    for include in [includes] if isinstance(includes, str) else includes or ():
        if isinstance(include, str) and depth:
            base |= _read(path.parent / include, depth - 1)
    return {**base, **content}
