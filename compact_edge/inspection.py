"""What `compact-edge inspect` says of a model: where its parameters are, and what pruning to given sizes takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compact.budget import (
    Limits,
    Parts,
    Sizes,
    count_config,
    count_parts,
    explicit_sizes,
    pruned_parts,
    sizes_for_ratio,
)
from compact.config_source import ConfigSource, config_of_row, open_config
from compact.errors import ToolUnavailableError, UsageError
from compact.progress import Progress
from compact.published import published_model
from compact.sizes import RATIO_GRID
from compact.source import ModelSource, open_source
from compact_edge.console import format_table

if TYPE_CHECKING:
    from compact.cache import Cache
    from compact.family import Family
    from compact.ranking import Ranking

# What a byte-level tokenizer always keeps: its alphabet. The special tokens that stay too are not in config.json.
_LEAST_VOCABULARY = 256
# Rows of the table of vocabulary sizes.
_MOST_ROWS = 14
_PARTS = ("vocabulary", "attention", "ffn", "norms", "other")


@dataclass(frozen=True)
class Request:
    """Sizes that the user asked about; all None: none.

    Attributes:
        ratio: share of all parameters to remove.
        vocab_size, intermediate_size: explicit final sizes.
    """

    ratio: float | None = None
    vocab_size: int | None = None
    intermediate_size: int | None = None

    def check(self) -> None:
        """Refuse a ratio beside explicit sizes. Raises UsageError."""
        if self.ratio is not None and (self.vocab_size is not None or self.intermediate_size is not None):
            raise UsageError("--ratio and explicit sizes exclude each other", "give one of them")

    @property
    def asked(self) -> bool:
        """Whether there is anything to show."""
        return self != Request()


@dataclass(frozen=True)
class Inspected:
    """A model with its parameters counted.

    Attributes:
        source: the checkpoint, or the configuration where that is all there is.
        parts: from the tensors of a checkpoint, from the configuration else.
        languages: what its vocabulary is ranked for; none takes the default ranking.
        cache: keeps what a ranking by languages counts; None beside a configuration, which has no tokenizer.
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
        """The model's own."""
        return Sizes(int(self.config["vocab_size"]), int(self.config["intermediate_size"]))

    @cached_property
    def ranking(self) -> Ranking | None:
        """The tokenizer's ranking; None where there is no tokenizer to read."""
        if isinstance(self.source, ConfigSource) or self.cache is None:
            return None
        from compact.context import Context
        from compact.prune_options import PruneOptions
        from compact.ranking import rank_vocabulary

        return rank_vocabulary(Context(self.source, PruneOptions(languages=self.languages), self.cache))

    @property
    def merges(self) -> int | None:
        """Merges that a GGUF's tokenizer holds; None where that is not known."""
        if isinstance(self.source, ConfigSource):
            return self.source.merges
        vocabulary = None if self.ranking is None else self.ranking.vocabulary
        return None if vocabulary is None else 0 if vocabulary.sentencepiece else len(vocabulary.merges)

    def limits(self, grid: int = 1) -> Limits:
        """What the sizes may be, with FFN channels in multiples of `grid`."""
        own = self.sizes
        least = _LEAST_VOCABULARY if self.ranking is None else len(self.ranking.always)
        return Limits(own.vocab_size, own.intermediate_size, min(least, own.vocab_size), grid)

    def sizes_asked(self, request: Request, grid: int = 1) -> Sizes:
        """The sizes that a build would prune to. Raises BudgetError.

        Args:
            request: a ratio, or sizes.
            grid: block of the quantization. A ratio lands on multiples of 32 at least, as in a build.
        """
        if request.ratio is None:
            return explicit_sizes(request.vocab_size, request.intermediate_size, self.limits(grid))
        return sizes_for_ratio(request.ratio, self.parts, self.limits(max(grid, RATIO_GRID)))

    def pruned(self, request: Request, grid: int = 1) -> tuple[Sizes, Parts]:
        """The sizes asked for, and where the parameters are then. Raises BudgetError."""
        sizes = self.sizes_asked(request, grid)
        return sizes, pruned_parts(sizes, self.parts, self.sizes)


def inspect_model(model: str, cache: Cache, progress: Progress, languages: tuple[str, ...] = ()) -> Inspected:
    """Open what the user named and count its parameters.

    Raises what `compact.source.open_source` and `compact.config_source.open_config` raise.
    """
    found = open_config(model, progress)
    if found is not None:
        _need_tokenizer(found, languages)
        return of_config(found)
    try:
        source = open_source(model, cache, progress)
    except ToolUnavailableError:
        # The package of a built-in model is not installed; its sizes are in the table.
        row = published_model(model)
        if row is None:
            raise
        progress.note(f"{model}: the package with its weights is not installed; its sizes are from the built-in table")
        row_source = config_of_row(row)
        _need_tokenizer(row_source, languages)
        return of_config(row_source)
    return Inspected(source, count_parts(source.tensors, source.config), languages, cache)


def _need_tokenizer(source: ConfigSource, languages: Sequence[str]) -> None:
    if languages:
        raise UsageError(
            f"--languages: only the configuration of {source.name} is here, and no tokenizer",
            "name a checkpoint directory or a .gguf file",
        )


def of_config(source: ConfigSource) -> Inspected:
    """A model of which only the configuration is known."""
    return Inspected(source, count_config(source.config, source.where))


def shares(parts: Parts) -> dict[str, float]:
    """Share of every part in all parameters, 0 to 1."""
    return {name: parts.as_dict()[name] / parts.total for name in _PARTS}


def facts(model: Inspected) -> dict[str, Any]:
    """Architecture and sizes, as `--json` names them."""
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
    """Everything that is shown, for `--json`. Raises BudgetError for sizes that the model cannot have."""
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
    """The same for people."""
    parts = model.parts
    lines = [f"{model.source.name}: " + ", ".join(f"{name} {value}" for name, value in facts(model).items())]
    if not request.asked:
        rows = [(name, f"{count:,}", f"{count / parts.total:.1%}") for name, count in _rows(parts)]
        lines.append(format_table(("PART", "PARAMETERS", "SHARE"), rows))
    else:
        sizes, after = model.pruned(request)
        lines.append(
            f"pruned to vocab_size {sizes.vocab_size:,}, intermediate_size {sizes.intermediate_size:,}: "
            f"{1 - after.total / parts.total:.1%} of the parameters go"
        )
        left = dict(_rows(after))
        rows5 = [
            (name, f"{n:,}", f"{n / parts.total:.1%}", f"{left[name]:,}", f"{left[name] / after.total:.1%}")
            for name, n in _rows(parts)
        ]
        lines.append(format_table(("PART", "PARAMETERS", "SHARE", "PRUNED", "SHARE"), rows5))
    if model.languages:
        lines += languages_report(model)
    lines.append(f"a token costs {parts.per_row:,} parameters, an FFN channel {parts.per_channel:,} (over all layers)")
    if request.asked:
        ranking = model.ranking
        lines.append(
            "how small the vocabulary may get is not known without the tokenizer"
            if ranking is None
            else f"the vocabulary can have {len(ranking.always):,} tokens at the least"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class VocabularySize:
    """What one vocabulary size keeps of text in the languages.

    Attributes:
        vocab_size: tokens.
        parameters: of the whole model, its FFN uncut.
        coverage: share of the text's tokens that stay whole, 0 to 1.
        tokens_per_character: of the text.
    """

    vocab_size: int
    parameters: int
    coverage: float
    tokens_per_character: float

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "vocab_size": self.vocab_size,
            "parameters": self.parameters,
            "coverage": round(self.coverage, 6),
            "tokens_per_character": round(self.tokens_per_character, 6),
        }


def sizes_table(model: Inspected) -> list[VocabularySize]:
    """The curve of a model's languages: the whole vocabulary, then the powers of two and what is halfway between."""
    ranking = model.ranking
    assert ranking is not None
    whole = model.sizes
    steps = [size for power in range(30, 9, -1) for size in (3 << power - 1, 1 << power)]
    sizes = [whole.vocab_size, *(n for n in steps if len(ranking.always) <= n < whole.vocab_size)]
    rows = []
    for size in sizes[:_MOST_ROWS]:
        coverage, per_character = ranking.reach.at(size)
        after = pruned_parts(Sizes(size, whole.intermediate_size), model.parts, whole)
        rows.append(VocabularySize(size, after.total, coverage, per_character))
    return rows


def languages_report(model: Inspected) -> list[str]:
    """The same curve for people."""
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
        f"text in {', '.join(model.languages)}, with the vocabulary cut alone:",
        format_table(header, rows),
        "coverage: the share of the text's tokens that stay whole; build --vocab-coverage 99.9% takes the smallest "
        "vocabulary of that share",
    ]


def _rows(parts: Parts) -> Sequence[tuple[str, int]]:
    """Parts that there are; input embedding and LM head apart where they are two."""
    rows: list[tuple[str, int]] = []
    for name, count in parts.as_dict().items():
        if count:
            rows.append((name, count))
        if name == "vocabulary" and parts.embedding < parts.vocabulary:
            rows.append(("  input embedding", parts.embedding))
            others = (("  per-layer embedding", parts.per_layer), ("  LM head", parts.lm_head))
            rows += [row for row in others if row[1]]
    return rows
