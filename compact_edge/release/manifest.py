"""Reads release.toml, the description of a release. The schema is strict: unknown keys are errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import CompactEdgeError, DataError, UsageError
from compact.calibration import calibration_set as calibration
from compact.sources.model_source import BUILT_IN
from targets.schema import Reader, kind_of, read_toml, shown, suggestion

if TYPE_CHECKING:
    from compact.pruning.options import PruneOptions
    from targets.profile import Profile

SCHEMA_VERSION = 1
_LARGEST_FILE = 256 * 1024
_KEYS = ("schema", "owner", "targets", "quants", "baseline", "bench", "model")
_BENCH_KEYS = ("repetitions", "seconds")
# Keys of `[[model]]` that are options of `build`, by kind.
_TEXTS = ("method", "repair_tokens", "vocab_rank", "split", "recover", "recover_until", "train", "device", "dtype")
_SOURCES = ("calibration", "recover_text")
_LISTS = (*_SOURCES, "languages")
_FILES = ("vocab_corpus", "keep_tokens")
_WHOLE: Mapping[str, tuple[int, int]] = {
    "calibration_tokens": (1, 1 << 40),
    "sequence_length": (16, 1 << 24),
    "seed": (0, (1 << 31) - 1),
    "pad_vocab_to_multiple_of": (1, 4096),
    "vocab_floor": (0, 1 << 31),
    "recover_tokens": (1, 1 << 48),
}
_REAL: Mapping[str, tuple[float, float]] = {"recover_minutes": (1e-3, 1e6), "learning_rate": (1e-9, 1.0)}
_MODEL_KEYS = ("model", "name", "ratios", *_LISTS, *_TEXTS, *_FILES, "eval_text", *_WHOLE, *_REAL)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_MOST_CELLS = 256  # jobs of one GitHub matrix


@dataclass(frozen=True)
class ModelEntry:
    """One `[[model]]`.

    Attributes:
        model: model as written in release.toml.
        opened: model for `open_source`. A path relative to release.toml is made absolute.
        name: name of the published model; None for the model's own name.
        ratios: shares of the parameters to remove, ascending.
        values: given options by their key in release.toml, with absolute paths.
        said: the same options as written in release.toml. They are equal on all machines, so they can be compared.
        eval_text: text for bits per byte, or None.
    """

    model: str
    opened: str
    name: str | None
    ratios: tuple[float, ...]
    values: Mapping[str, Any]
    said: Mapping[str, Any]
    eval_text: Path | None = None

    @property
    def slug(self) -> str:
        """The model's part of cell ids: its name without folder, owner, revision and file ending."""
        last = self.name or self.model.partition("@")[0].rstrip("/").rpartition("/")[2].removesuffix(".gguf")
        return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or "model"

    @property
    def files(self) -> tuple[Path, ...]:
        """The input files, without those of the model."""
        named = (*self.values.get("calibration", ()), *self.values.get("recover_text", ()))
        paths = [Path(name) for name in named if Path(name).is_file()]
        paths += [self.values[key] for key in _FILES if key in self.values]
        return (*paths, *(() if self.eval_text is None else (self.eval_text,)))

    def pruning(self, ratio: float, channel_grid: int = 1) -> PruneOptions:
        """Return the options of a plan. Raises UsageError if options exclude each other."""
        from compact_edge.flags import prune_options

        return prune_options({**self.values, "ratio": ratio}, channel_grid=channel_grid)


@dataclass(frozen=True)
class BenchSettings:
    """Settings of the benchmark. None means the default of `compact-edge bench`."""

    repetitions: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Release:
    """A release.toml that passed every check.

    Attributes:
        path: the file.
        owner: Hub user or organisation that publishes, or None.
        models: models in the order of the file.
        targets: profiles by name, in the order of the file.
        target_words: profile name -> the name or path in the file.
        quants: types by target. A target that is missing here uses its own type.
        baseline: whether the unpruned model is also built and measured at the same types.
        bench: settings of the benchmark; None does not measure.
    """

    path: Path
    owner: str | None
    models: tuple[ModelEntry, ...]
    targets: Mapping[str, Profile]
    target_words: Mapping[str, str]
    quants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    baseline: bool = True
    bench: BenchSettings | None = None


def read_release(path: Path) -> Release:
    """Read a release.toml.

    Raises:
        UsageError: the file does not exist, a target is unknown, or options exclude each other.
        DataError: the file violates the schema. The message names file and key.
    """
    name = str(path) if str(path).isprintable() else shown(str(path))
    if not path.is_file():
        raise UsageError(f"{name}: no such file", "give the path of a release.toml; docs/release.md has an example")
    table = read_toml(path, name, "a release.toml", largest=_LARGEST_FILE)
    return _build(_Reader(name, table, what="a release.toml"), path.absolute())


class _Reader(Reader):
    """The readers for device profiles, and further ones for plain values."""

    def optional(self, key: str, known: Iterable[str] = ()) -> str | None:
        if not self.has(key):
            return None
        return self.choice(key, known) if known else self.text(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.table.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {kind_of(value)}", f"write {key} = true")
        return value

    def number(self, key: str, low: float, high: float, *, whole: bool) -> Any:
        value = self.table[key]
        kinds = int if whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            what = "a whole number" if whole else "a number"
            raise self.fail(key, f"must be {what} between {low:g} and {high:g}", "correct the number in the file")
        return value if whole else float(value)

    def listed(self, key: str) -> list[Any]:
        """Return the values of a list. It must not be empty."""
        value = self.table.get(key)
        if not isinstance(value, list) or not value:
            problem = "is missing" if value is None else f"must be a list with at least one value, not {kind_of(value)}"
            raise self.fail(key, problem, f"write {key} = [...]")
        return value

    def texts(self, key: str, *, alone: bool = False) -> tuple[str, ...]:
        """Return the texts of a list without duplicates. With `alone`, a single text without a list is allowed."""
        value = self.table.get(key)
        items = [value] if alone and isinstance(value, str) else self.listed(key)
        for item in items:
            if not isinstance(item, str) or not item.strip() or not item.isprintable():
                raise self.fail(key, "must contain texts of one printable line", f'write {key} = ["..."]')
            if items.count(item) > 1:
                raise self.fail(key, f"names {shown(item)} twice", "name it once")
        return tuple(items)

    def inner(self, key: str, value: Any) -> _Reader:
        if not isinstance(value, dict):
            raise self.fail(key, f"must be a table, not {kind_of(value)}", f"write [{key}] and its keys below it")
        return _Reader(self.file, value, f"{self.prefix}{key}.", self.what)


def _build(reader: _Reader, path: Path) -> Release:
    reader.only(_KEYS)
    version = reader.table.get("schema")
    if version is None or isinstance(version, bool) or version != SCHEMA_VERSION:
        raise reader.fail("schema", f"must be {SCHEMA_VERSION}", f"write schema = {SCHEMA_VERSION}")
    owner = reader.optional("owner")
    if owner is not None and not _NAME.fullmatch(owner):
        raise reader.fail("owner", f"is {shown(owner)}", "write the name of a user or organisation of the Hub")
    targets, words = _targets(reader, path.parent)
    entries = reader.listed("model")
    models = [_model(reader.inner(f"model[{n}]", entry), path.parent) for n, entry in enumerate(entries)]
    slugs = [model.slug for model in models]
    for number, slug in enumerate(slugs):
        if slug in slugs[:number]:
            raise reader.fail(
                f"model[{number}]", f"has the same name {shown(slug)} as another model", 'give it a name = "..."'
            )
    release = Release(
        path=path,
        owner=owner,
        models=tuple(models),
        targets=targets,
        target_words=words,
        quants=_quants(reader, targets),
        baseline=reader.flag("baseline", True),
        bench=_bench(reader),
    )
    if release.bench is not None and not release.baseline:
        raise reader.fail("bench", "needs the unpruned model", "remove baseline = false, or bench")
    ratios = sum(len(model.ratios) for model in models)
    types = sum(len(release.quants.get(name, ("",))) for name in targets)
    if ratios * types > _MOST_CELLS:
        problem = f"makes {ratios * types} files, more than {_MOST_CELLS}"
        raise reader.fail(
            "model", problem, "split it into several release.toml files; this is the maximum for a CI matrix"
        )
    return release


def _targets(reader: _Reader, folder: Path) -> tuple[dict[str, Profile], dict[str, str]]:
    from targets.profile import load_profile

    profiles: dict[str, Profile] = {}
    words: dict[str, str] = {}
    for word in reader.texts("targets"):
        beside = folder / word
        named = str(beside) if word.endswith(".toml") and beside.is_file() else word
        try:
            profile = load_profile(named)
        except UsageError as error:
            raise reader.fail("targets", f"has {shown(word)}: {error.message}", error.hint or "") from error
        if profile.name in profiles:
            raise reader.fail("targets", f"has two profiles called {profile.name}", "rename one of them")
        profiles[profile.name] = profile
        words[profile.name] = named
    return profiles, words


def _quants(reader: _Reader, targets: Mapping[str, Profile]) -> dict[str, tuple[str, ...]]:
    """Return the types by target."""
    from exporters.registry import format_of_runtime

    if not reader.has("quants"):
        return {}
    table = reader.inner("quants", reader.table["quants"])
    found = {}
    for name in table.table:
        if name not in targets:
            raise table.fail(name, "is none of the targets", suggestion(name, targets, "targets"))
        known = format_of_runtime(targets[name].runtime).quants()
        types = table.texts(name, alone=True)
        for quant in types:
            if quant not in known:
                raise table.fail(name, f"has the unknown type {shown(quant)}", suggestion(quant, known, "known types"))
        found[name] = types
    return found


def _bench(reader: _Reader) -> BenchSettings | None:
    value = reader.table.get("bench", False)
    if isinstance(value, bool):
        return BenchSettings() if value else None
    inner = reader.inner("bench", value)
    inner.only(_BENCH_KEYS)
    repetitions = inner.number("repetitions", 1, 1000, whole=True) if inner.has("repetitions") else None
    seconds = inner.number("seconds", 1, 1e6, whole=False) if inner.has("seconds") else None
    return BenchSettings(repetitions, seconds)


def _model(reader: _Reader, folder: Path) -> ModelEntry:
    from compact_edge.flags import pruning_choices

    reader.only(_MODEL_KEYS)
    model, name = reader.text("model"), reader.optional("name")
    if name is not None and not _NAME.fullmatch(name):
        raise reader.fail("name", f"is {shown(name)}", "use letters, digits, '.', '_' and '-'")
    ratios = reader.listed("ratios")
    for ratio in ratios:
        if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 < ratio < 1:
            raise reader.fail("ratios", "must contain numbers between 0 and 1", "write ratios = [0.1, 0.2]")
    if len({f"{ratio:g}" for ratio in ratios}) < len(ratios):
        raise reader.fail("ratios", "contains a ratio twice", "give each ratio once")
    said: dict[str, Any] = {}
    for key in _LISTS:
        if reader.has(key):
            said[key] = reader.texts(key, alone=True)
    choices = pruning_choices()
    for key in _TEXTS:
        if (text := reader.optional(key, choices.get(key, ()))) is not None:
            said[key] = text
    for limits, whole in ((_WHOLE, True), (_REAL, False)):
        for key, (low, high) in limits.items():
            if reader.has(key):
                said[key] = reader.number(key, low, high, whole=whole)
    values = dict(said)
    built_in = (*calibration.BUILT_IN, calibration.SELF)
    for key in _SOURCES:
        if key in said:
            values[key] = tuple(w if w in built_in else _beside(folder, w) for w in said[key])
    for key in (*_FILES, "eval_text"):
        if reader.has(key):
            said[key] = reader.text(key)
            values[key] = folder / said[key]
            if not values[key].is_file():
                raise reader.fail(key, f"is {shown(said[key])}, which does not exist", "correct the path")
    eval_text = values.pop("eval_text", None)
    opened = model if model in BUILT_IN else _beside(folder, model)
    entry = ModelEntry(model, opened, name, tuple(sorted(map(float, ratios))), values, said, eval_text)
    for ratio in entry.ratios:
        try:
            entry.pruning(ratio)
        except CompactEdgeError as error:
            raise DataError(f"{reader.file}: {reader.prefix[:-1]}: {error.message}", error.hint) from error
    return entry


def _beside(folder: Path, word: str) -> str:
    """Return a value of release.toml. If it is a path relative to `folder` that exists, return that path."""
    path = Path(word).expanduser()
    beside = path if path.is_absolute() else folder / path
    return str(beside) if beside.exists() else word
