"""`compact-edge inspect`: the parameters of a model by part, before and after pruning to given sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compact.architectures.published import published_model
from compact.base.errors import ToolUnavailableError, UsageError
from compact.base.progress import Progress
from compact.pruning.budget import (
    Limits,
    Parts,
    Sizes,
    count_config,
    count_parts,
    explicit_sizes,
    pruned_parts,
    sizes_for_ratio,
)
from compact.pruning.sizes import RATIO_GRID
from compact.sources.config_source import ConfigSource, config_of_row, open_config
from compact.sources.model_source import ModelSource, open_source
from compact_edge.terminal.console import format_table

if TYPE_CHECKING:
    from compact.architectures.family import Family
    from compact.base.cache import Cache
    from compact.pruning.ranking import Ranking

# A byte-level tokenizer always keeps its alphabet. It also keeps special tokens, but config.json does not list them.
_MIN_VOCABULARY = 256
# Maximum rows of the table of vocabulary sizes.
_MAX_ROWS = 14
_PARTS = ("vocabulary", "attention", "ffn", "norms", "other")


@dataclass(frozen=True)
class Request:
    """Sizes that the user requested. If all are None, the user requested none.

    Attributes:
        ratio: share of all parameters to remove.
        vocab_size, intermediate_size: explicit final sizes.
    """

    ratio: float | None = None
    vocab_size: int | None = None
    intermediate_size: int | None = None

    def check(self) -> None:
        """Raise UsageError if there are both a ratio and explicit sizes."""
        if self.ratio is not None and (self.vocab_size is not None or self.intermediate_size is not None):
            raise UsageError("--ratio and explicit sizes exclude each other", "give only one of them")

    @property
    def asked(self) -> bool:
        """Whether the user requested any size."""
        return self != Request()


@dataclass(frozen=True)
class Inspected:
    """A model with its parameters counted.

    Attributes:
        source: the checkpoint, or only the configuration.
        parts: parameters by part, counted from the tensors or else from the configuration.
        languages: languages for which the vocabulary is ranked; empty: the default ranking.
        cache: cache for the token counts of a ranking by languages; None with a configuration.
    """

    source: ModelSource | ConfigSource
    parts: Parts
    languages: tuple[str, ...] = ()
    cache: Cache | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of the language model."""
        return self.source.config

    @property
    def family(self) -> Family:
        """The row of the family table."""
        return self.source.family

    @property
    def sizes(self) -> Sizes:
        """Sizes of the unpruned model."""
        return Sizes(int(self.config["vocab_size"]), int(self.config["intermediate_size"]))

    @cached_property
    def ranking(self) -> Ranking | None:
        """The ranking of the tokenizer's tokens; None if there is no tokenizer."""
        if isinstance(self.source, ConfigSource) or self.cache is None:
            return None
        from compact.pruning.context import Context
        from compact.pruning.options import PruneOptions
        from compact.pruning.ranking import rank_vocabulary

        return rank_vocabulary(Context(self.source, PruneOptions(languages=self.languages), self.cache))

    @property
    def merges(self) -> int | None:
        """Number of merges in a GGUF's tokenizer; None if unknown."""
        if isinstance(self.source, ConfigSource):
            return self.source.merges
        vocabulary = None if self.ranking is None else self.ranking.vocabulary
        return None if vocabulary is None else 0 if vocabulary.sentencepiece else len(vocabulary.merges)

    def limits(self, grid: int = 1) -> Limits:
        """Return the limits of the sizes, with FFN channels in multiples of `grid`."""
        sizes = self.sizes
        least = _MIN_VOCABULARY if self.ranking is None else len(self.ranking.always)
        return Limits(sizes.vocab_size, sizes.intermediate_size, min(least, sizes.vocab_size), grid)

    def sizes_asked(self, request: Request, grid: int = 1) -> Sizes:
        """Return the sizes that a build would prune to. Raises BudgetError.

        Args:
            request: a ratio, or sizes.
            grid: block size of the quantization. For a ratio, sizes are multiples of at least 32, as in a build.
        """
        if request.ratio is None:
            return explicit_sizes(request.vocab_size, request.intermediate_size, self.limits(grid))
        return sizes_for_ratio(request.ratio, self.parts, self.limits(max(grid, RATIO_GRID)))

    def pruned(self, request: Request, grid: int = 1) -> tuple[Sizes, Parts]:
        """Return the requested sizes and the parameters by part at these sizes. Raises BudgetError."""
        sizes = self.sizes_asked(request, grid)
        return sizes, pruned_parts(sizes, self.parts, self.sizes)


def inspect_model(model: str, cache: Cache, progress: Progress, languages: tuple[str, ...] = ()) -> Inspected:
    """Open a model and count its parameters.

    Raises:
        CompactEdgeError: as in `compact.sources.model_source.open_source` and
            `compact.sources.config_source.open_config`.
    """
    found = open_config(model, progress)
    if found is not None:
        _need_tokenizer(found, languages)
        return of_config(found)
    try:
        source = open_source(model, cache, progress)
    except ToolUnavailableError:
        # The package of a built-in model is not installed. Use the sizes in the table.
        row = published_model(model)
        if row is None:
            raise
        progress.note(f"{model}: the package with its weights is not installed; using the sizes of the built-in table")
        row_source = config_of_row(row)
        _need_tokenizer(row_source, languages)
        return of_config(row_source)
    return Inspected(source, count_parts(source.tensors, source.config), languages, cache)


def _need_tokenizer(source: ConfigSource, languages: Sequence[str]) -> None:
    if languages:
        raise UsageError(
            f"--languages: {source.name} has only a configuration, and no tokenizer",
            "give a checkpoint directory or a .gguf file",
        )


def of_config(source: ConfigSource) -> Inspected:
    """Count the parameters of a model from its configuration."""
    return Inspected(source, count_config(source.config, source.where))


def shares(parts: Parts) -> dict[str, float]:
    """Return the share of each part in all parameters, 0 to 1."""
    return {name: parts.as_dict()[name] / parts.total for name in _PARTS}


def facts(model: Inspected) -> dict[str, Any]:
    """Return architecture and sizes with the names of `--json`."""
    config = model.config
    return {
        "architecture": model.family.architecture,
        "hidden_size": int(config["hidden_size"]),
        "intermediate_size": int(config["intermediate_size"]),
        "num_hidden_layers": int(config["num_hidden_layers"]),
        "vocab_size": int(config["vocab_size"]),
        "tie_word_embeddings": model.parts.lm_head == 0,
        "max_position_embeddings": int(config.get("max_position_embeddings") or 2048),
    }


def as_dict(model: Inspected, request: Request) -> dict[str, Any]:
    """Return the whole report for `--json`. Raises BudgetError if the model cannot have the requested sizes."""
    source, parts = model.source, model.parts
    result = {
        "model": source.name,
        "source_id": source.id if isinstance(source, ModelSource) else None,
        "hub_id": source.hub_id,
        "counted_from": "config.json" if isinstance(source, ConfigSource) else "tensors",
        **facts(model),
        "parameters": parts.as_dict(),
        "vocabulary": parts.vocabulary_parts,
        "shares": {name: round(share, 6) for name, share in shares(parts).items()},
        "parameters_per_token": parts.per_row,
        "parameters_per_channel": parts.per_channel,
    }
    if model.languages:
        result |= {
            "languages": list(model.languages),
            "vocabulary_sizes": [row.as_dict() for row in sizes_table(model)],
        }
    if not request.asked:
        return result
    sizes, after = model.pruned(request)
    return result | {
        "pruned": {
            "vocab_size": sizes.vocab_size,
            "intermediate_size": sizes.intermediate_size,
            "ratio": round(1 - after.total / parts.total, 6),
            "parameters": after.as_dict(),
            "vocabulary": after.vocabulary_parts,
            "shares": {name: round(share, 6) for name, share in shares(after).items()},
            "smallest_vocab_size": None if model.ranking is None else len(model.ranking.always),
        }
    }


def report(model: Inspected, request: Request) -> str:
    """Return the report as text. Raises BudgetError if the model cannot have the requested sizes."""
    parts = model.parts
    lines = [f"{model.source.name}: " + ", ".join(f"{name} {value}" for name, value in facts(model).items())]
    if not request.asked:
        rows = [(name, f"{count:,}", f"{count / parts.total:.1%}") for name, count in _rows(parts)]
        lines.append(format_table(("PART", "PARAMETERS", "SHARE"), rows))
    else:
        sizes, after = model.pruned(request)
        lines.append(
            f"pruned to vocab_size {sizes.vocab_size:,}, intermediate_size {sizes.intermediate_size:,}: "
            f"{1 - after.total / parts.total:.1%} of the parameters are removed"
        )
        left = dict(_rows(after))
        rows5 = [
            (name, f"{n:,}", f"{n / parts.total:.1%}", f"{left[name]:,}", f"{left[name] / after.total:.1%}")
            for name, n in _rows(parts)
        ]
        lines.append(format_table(("PART", "PARAMETERS", "SHARE", "PRUNED", "SHARE"), rows5))
    if model.languages:
        lines += languages_report(model)
    lines.append(f"parameters per token: {parts.per_row:,}; per FFN channel (over all layers): {parts.per_channel:,}")
    if request.asked:
        ranking = model.ranking
        lines.append(
            "smallest vocabulary: not known without the tokenizer"
            if ranking is None
            else f"smallest vocabulary: {len(ranking.always):,} tokens"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class VocabularySize:
    """Coverage of text in the languages at one vocabulary size.

    Attributes:
        vocab_size: number of tokens.
        parameters: parameters of the whole model with the original FFN.
        coverage: share of the text's tokens that remain in the vocabulary, 0 to 1.
        tokens_per_character: tokens per character of the text.
    """

    vocab_size: int
    parameters: int
    coverage: float
    tokens_per_character: float

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`."""
        return {
            "vocab_size": self.vocab_size,
            "parameters": self.parameters,
            "coverage": round(self.coverage, 6),
            "tokens_per_character": round(self.tokens_per_character, 6),
        }


def sizes_table(model: Inspected) -> list[VocabularySize]:
    """Return coverage by vocabulary size: the whole vocabulary, then powers of two and the midpoints between them."""
    ranking = model.ranking
    assert ranking is not None
    whole = model.sizes
    steps = [size for power in range(30, 9, -1) for size in (3 << power - 1, 1 << power)]
    sizes = [whole.vocab_size, *(n for n in steps if len(ranking.always) <= n < whole.vocab_size)]
    rows = []
    for size in sizes[:_MAX_ROWS]:
        coverage, per_character = ranking.reach.at(size)
        after = pruned_parts(Sizes(size, whole.intermediate_size), model.parts, whole)
        rows.append(VocabularySize(size, after.total, coverage, per_character))
    return rows


def languages_report(model: Inspected) -> list[str]:
    """Return `sizes_table` as lines of text."""
    rows = [
        (
            f"{row.vocab_size:,}",
            f"{row.parameters / 1e6:.1f}M",
            f"{row.parameters / model.parts.total - 1:+.1%}",
            f"{row.coverage:.2%}",
            f"{row.tokens_per_character:.4f}",
        )
        for row in sizes_table(model)
    ]
    header = ("VOCAB_SIZE", "PARAMETERS", "CHANGE", "COVERAGE", "TOKENS/CHARACTER")
    return [
        f"text in {', '.join(model.languages)}, if only the vocabulary is cut:",
        format_table(header, rows),
        "coverage: share of the text's tokens that remain in the vocabulary; build --vocab-coverage 99.9% selects the "
        "smallest vocabulary with that coverage",
    ]


def _rows(parts: Parts) -> Sequence[tuple[str, int]]:
    """Return the parts that are not empty. List input embedding and LM head separately if they are not tied."""
    rows: list[tuple[str, int]] = []
    for name, count in parts.as_dict().items():
        if count:
            rows.append((name, count))
        if name == "vocabulary" and parts.embedding < parts.vocabulary:
            rows.append(("  input embedding", parts.embedding))
            others = (("  per-layer embedding", parts.per_layer), ("  LM head", parts.lm_head))
            rows += [row for row in others if row[1]]
    return rows
