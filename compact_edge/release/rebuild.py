"""`verify --rebuild`: rebuild the files of a release from plan.json and the source, and compare them.

Files of our own writer must be byte-identical on every machine. A file that an engine quantised is compared only if the
engine build and the instruction set are the same. Otherwise different bytes would prove nothing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from compact.base.cache import Cache, open_cache
from compact.base.errors import (
    CompactEdgeError,
    DamagedFileError,
    GateError,
    PlanMismatchError,
    ToolUnavailableError,
    UsageError,
)
from compact.base.files import sha256_file
from compact.base.progress import Progress
from compact.calibration.calibration_set import Calibration
from compact.decide import Decision, pruned_checkpoint, read_decision
from compact.pruning.plan import PLAN, UPDATES
from compact.sources.model_source import BUILT_IN, ModelSource, open_source
from compact_edge.building.pipeline import pruned_request
from compact_edge.release.make import DIRECT, made_with
from compact_edge.release.record import IMATRIX
from compact_edge.release.verify import MANIFEST, repositories
from compact_edge.terminal.console import format_table, print_json
from exporters.base import Format
from exporters.format_values import Request, Variant
from exporters.registry import format_named, names
from targets.profile import load_profile

IDENTICAL, DIFFERENT, NOT_COMPARABLE = "identical", "different", "not comparable"
_NO_UPDATES = f"the plan names an {UPDATES} that is not published; give the plan's folder: --plan DIR"
_NO_TEXTS = Calibration(name="", sha256="", texts=(), sequences=(), options={}, id="")


@dataclass(frozen=True)
class Verdict:
    """The result of rebuilding one file.

    Attributes:
        file: name in the release.
        verdict: `identical`, `different` or `not comparable`.
        reason: why the file is not identical; "" if it is.
    """

    file: str
    verdict: str
    reason: str = ""


def rebuild_release(
    directory: Path, model: str | None, plan: Path | None, progress: Progress, *, as_json: bool
) -> None:
    """Rebuild every file of a release, or of one of its folders, and print the results.

    Args:
        directory: a release or one of its folders, with verified checksums.
        model: the source, if it is not a built-in model.
        plan: a folder with the `updates.safetensors` of the plan.
        progress: shows the stages.
        as_json: print JSON.

    Raises:
        UsageError: `directory` is not a release, or the user must name the source.
        PlanMismatchError: the release was built from a different source or plan.
        GateError: a file differs.
        ToolUnavailableError: no file differs, but some cannot be compared on this machine.
    """
    folders = list(repositories(directory))
    if not folders:
        raise UsageError(
            f"{directory}: not a release, so it cannot be rebuilt", f"give a folder with the {MANIFEST} of a release"
        )
    verdicts: list[Verdict] = []
    for folder, manifest in folders:
        prefix = "" if folder == directory else f"{folder.name}/"
        made = _rebuilt(folder, manifest, model, plan, progress)
        verdicts += [Verdict(prefix + each.file, each.verdict, each.reason) for each in made]
    if as_json:
        print_json({"directory": str(directory.absolute()), "files": [vars(each) for each in verdicts]})
    else:
        rows = [(each.file, each.verdict, each.reason) for each in verdicts]
        click.echo(format_table(("file", "rebuilt", "reason"), rows))
    _require(verdicts)


def _require(verdicts: list[Verdict]) -> None:
    different = [each.file for each in verdicts if each.verdict == DIFFERENT]
    if different:
        raise GateError(
            f"{len(different)} of {len(verdicts)} rebuilt files are different: {', '.join(different)}",
            "do not use these files, and report them: they were not made from plan.json and the source",
        )
    other = [each for each in verdicts if each.verdict == NOT_COMPARABLE]
    if other:
        names = ", ".join(each.file for each in other)
        raise ToolUnavailableError(
            f"{len(other)} of {len(verdicts)} files cannot be compared on this machine: {names}",
            "give the folder of the plan: --plan DIR"
            if all(each.reason == _NO_UPDATES for each in other)
            else "compare them with the engine and on the kind of machine that the manifest names",
        )


def _rebuilt(
    folder: Path, manifest: Mapping[str, Any], model: str | None, plan: Path | None, progress: Progress
) -> Iterator[Verdict]:
    where = folder / MANIFEST
    artifacts, facts = _field(manifest, "artifacts", list, where), _field(manifest, "model", dict, where)
    named, format_name = _field(manifest, "plan", dict, where), _field(manifest, "format", str, where)
    word = model or str(facts.get("origin"))
    if model is None and word not in BUILT_IN:
        # Do not download a model or open a folder only because a file names it.
        raise UsageError(
            f"{where}: was built from {word[:80]!r}, which is not opened by default", "name the source: --model MODEL"
        )
    with open_cache(enabled=False) as cache:
        source = open_source(word, cache, progress)
        if source.id != facts.get("source_id"):
            raise PlanMismatchError(
                f"{where}: was built from a different source than {word}", "name the source: --model MODEL"
            )
        decision = _decision(folder, named, plan, source)
        if decision is None:
            yield from (Verdict(str(each.get("place")), NOT_COMPARABLE, _NO_UPDATES) for each in artifacts)
            return
        request = _request(source, decision, str(manifest.get("title")), cache, progress)
        for artifact in artifacts:
            yield _compare(folder, format_name, artifact, request, cache, progress)


def _decision(folder: Path, named: Mapping[str, Any], plan: Path | None, source: ModelSource) -> Decision | None:
    """Return the plan of the release; None if it needs an updates.safetensors that is not available."""
    if named.get("updates_sha256") is None:
        return read_decision(folder, source)
    if plan is None:
        return None
    if sha256_file(plan / PLAN) != named.get("sha256"):
        raise PlanMismatchError(
            f"--plan {plan}: differs from the plan of the release", "give the folder of the plan of this release"
        )
    return read_decision(plan, source)


def _request(source: ModelSource, decision: Decision, title: str, cache: Cache, progress: Progress) -> Request:
    checkpoint, checkpoint_id = pruned_checkpoint(source, decision, cache, progress=progress)
    original = Request(
        label="original",
        checkpoint=source.directory,
        checkpoint_id=source.id,
        name=source.name,
        description="",
        published=False,
        source=source,
        calibration=_NO_TEXTS,
        pre=decision.plan.pre,
        unpruned=source.directory,
    )
    return pruned_request(original, decision.plan, checkpoint, checkpoint_id, title)


def _compare(
    folder: Path,
    format_name: str,
    artifact: Mapping[str, Any],
    request: Request,
    cache: Cache,
    progress: Progress,
) -> Verdict:
    where = folder / MANIFEST
    place, recipe = _field(artifact, "place", str, where), _field(artifact, "recipe", dict, where)
    recorded, files = _field(artifact, "made_with", dict, where), _field(artifact, "files", dict, where)
    chosen = _format(folder, format_name, recipe, request.source)
    if recorded != DIRECT and (why := _other_engine(chosen, recorded)) is not None:
        return Verdict(place, NOT_COMPARABLE, why)
    made = chosen.make(request, cache, progress)
    with tempfile.TemporaryDirectory(prefix="compact-edge-", dir=cache.root) as scratch:
        variant = Variant(request.label, request.checkpoint, request.checkpoint_id, made)
        placed = chosen.place(Path(scratch), variant, check=False)
        if chosen.suffix:
            found = {place: sha256_file(Path(scratch) / placed[0])}
        else:
            found = {f"{place}/{path.name}": sha256_file(path) for path in sorted(Path(scratch).iterdir())}
    for name in sorted(found.keys() | files.keys()):
        if found.get(name) != files.get(name):
            return Verdict(place, DIFFERENT, f"sha256 of {name} is {str(found.get(name))[:16]}...")
    return Verdict(place, IDENTICAL)


def _other_engine(chosen: Format, recorded: Mapping[str, Any]) -> str | None:
    """Describe how the engine here differs from the one that made a file; None if it is the same."""
    try:
        here = made_with(chosen)
    except CompactEdgeError as error:
        return error.message
    for key, what in (("engine", "the engine"), ("build", "the engine's build"), ("isa", "the instruction set")):
        if recorded.get(key) != here.get(key):
            return f"{what} differs: made with {_short(recorded.get(key))}, here {_short(here.get(key))}"
    return None


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", text)
    return text if len(text) <= 160 else f"{text[:160]}..."


def _format(folder: Path, name: str, recipe: Mapping[str, Any], source: ModelSource) -> Format:
    """Return the format of a recipe in a manifest. Raises DamagedFileError if the recipe is invalid."""
    where = folder / MANIFEST
    if name not in names():
        raise DamagedFileError(f"{where}: unknown format {name[:80]!r}", "update compact-edge")
    chosen = format_named(name)
    try:
        return chosen.from_manifest(recipe, load_profile(chosen.profile), source, folder / IMATRIX)
    except (KeyError, TypeError) as error:
        raise DamagedFileError(f"{where}: a recipe is incomplete ({error})", "download the release again") from error


def _field(value: Any, key: str, kind: type, where: Path) -> Any:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, kind):
        raise DamagedFileError(f"{where}: {key} is missing or has the wrong type", "download the release again")
    return found
