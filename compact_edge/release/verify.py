"""Checks that a published directory is unchanged: its checksums, and the manifests of a release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, ModelNotFoundError
from compact.base.files import SUMS, check_sums, read_json_object, read_sums, safe_child, sha256_file
from compact_edge.release.cells import SCHEMA

MANIFEST = "manifest.json"
_HINT = "build or download it again"


def checked_files(directory: Path) -> dict[str, str]:
    """Hash every file below `directory` that a SHA256SUMS lists, and compare the hashes.

    Returns:
        Relative file name -> sha256.

    Raises:
        ModelNotFoundError: the directory does not exist.
        DamagedFileError: there are no checksums; a file is missing, added or changed; or a manifest differs.
        UnsafePathError: a name points outside its directory.
    """
    if not directory.is_dir():
        raise ModelNotFoundError(f"{directory}: no such directory", "give the --out directory of a build")
    folders = sorted(path.parent for path in directory.rglob(SUMS))
    if not folders:
        raise DamagedFileError(f"{directory}: contains no {SUMS}", "give the --out directory of a build")
    checked: dict[str, str] = {}
    # The SHA256SUMS of a release lists the files of its folders again. Hash each file only once.
    hashed = cache(sha256_file)
    for folder in folders:
        sums = read_sums(folder)
        present = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != SUMS
        }
        for name in sorted(present - sums.keys()):
            raise DamagedFileError(
                f"{folder / name}: not listed in {SUMS}",
                "remove the file if it was added later, or download the directory again",
            )
        check_sums(folder, sums, _HINT, sha256_of=hashed)
        checked.update({(folder / name).relative_to(directory).as_posix(): digest for name, digest in sums.items()})
    for repository, manifest in repositories(directory):
        _check_manifest(repository, manifest, directory, checked)
    return checked


def repositories(directory: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the folders of a release with their manifests. `directory` is a release, or one of its folders.

    Raises DamagedFileError if a folder of the release is missing or has another manifest.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return
    manifest = read_json_object(path)
    if manifest.get("schema") != SCHEMA:
        return
    if "repositories" not in manifest:
        yield directory, manifest
        return
    named = manifest["repositories"]
    if not isinstance(named, dict):
        raise DamagedFileError(f"{path}: repositories must be an object", _HINT)
    for name, digest in named.items():
        folder = safe_child(directory, name, str(path))
        if not (folder / MANIFEST).is_file():
            raise DamagedFileError(f"{folder / MANIFEST}: missing, but named in {path}", _HINT)
        if sha256_file(folder / MANIFEST) != digest:
            raise DamagedFileError(f"{folder / MANIFEST}: differs from the one that {path} names", _HINT)
        yield folder, read_json_object(folder / MANIFEST)


def _check_manifest(folder: Path, manifest: Mapping[str, Any], directory: Path, checked: Mapping[str, str]) -> None:
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise DamagedFileError(f"{folder / MANIFEST}: files must be an object", _HINT)
    prefix = "" if folder == directory else f"{folder.name}/"
    for name, digest in files.items():
        # `name` is only compared with names of hashed files. It is never used as a path.
        if checked.get(f"{prefix}{name}") != digest:
            raise DamagedFileError(f"{folder / MANIFEST}: {str(name)[:80]!r} is missing or differs", _HINT)
