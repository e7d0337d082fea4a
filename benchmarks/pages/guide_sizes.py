"""The sizes that the two guides show, computed without weights: parameters, sizes and file bytes at each ratio.

    python -m benchmarks.pages.guide_sizes --work-dir DIR       # a minute; needs COMPACT_EDGE_DATA for the tokenizers
    python -m benchmarks.pages.guide_sizes --tables             # only write the tables, from the recorded result

The shapes come from a model's published configuration at its full depth, and from its own tokenizer. A checkpoint of
these shapes without contents replaces the weights, because no size depends on their values. The types are those that
`build` chooses for the guide's target. File bytes come from `exporters.gguf.size` and are at most a few hundred too
large.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import cache, data_folder, record, recorded, summary, table, write_table
from benchmarks.formats.family_configs import MODELS

NAME, SCRIPT = "guide-sizes", "pages.guide_sizes"
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4)


@dataclass(frozen=True)
class Guide:
    """A guide's model: its row in `family_configs`, its full depth, and the target."""

    document: str
    model: str
    name: str
    layers: int
    target: str


GUIDES = (
    Guide("guide-phone.md", "Qwen2.5 0.5B", "Qwen2.5-0.5B-Instruct", 24, "phone-arm64"),
    Guide("guide-laptop.md", "Llama 3.2 1B", "Llama-3.2-1B-Instruct", 16, "laptop-x86"),
)


def write_hollow(out: Path, guide: Guide) -> None:
    """Write a checkpoint of the model's shapes whose tensors are a hole in a sparse file: zeros without disk space."""
    from compact.architectures.layout import expected_shapes
    from compact.architectures.table import FAMILIES

    model = next(model for model in MODELS if model.name == guide.model)
    config = {**model.config, "num_hidden_layers": guide.layers}
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (data_folder() / "tokenizers" / model.tokenizer / file).is_file():
            shutil.copyfile(data_folder() / "tokenizers" / model.tokenizer / file, out / file)
    family = next(row for row in FAMILIES if row.architecture == config["architectures"][0])
    header, end = {}, 0
    for name, shape in expected_shapes(family, config, 10_000, guide.model).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    words = json.dumps(header).encode()
    with (out / "model.safetensors").open("wb") as weights:
        weights.write(len(words).to_bytes(8, "little") + words)
        weights.truncate(8 + len(words) + end)


def measure(guide: Guide, directory: Path) -> dict[str, Any]:
    """Parameters and sizes of a guide's model at every ratio."""
    from compact.pruning.budget import Sizes, count_parts, pruned_parts
    from compact.pruning.budget_options import PROPORTIONAL
    from compact.pruning.context import Context
    from compact.pruning.options import PruneOptions
    from compact.pruning.ranking import rank_vocabulary
    from compact.pruning.sizes import sizes_of
    from compact.sources.model_source import open_source
    from exporters.format_values import SizeRequest
    from exporters.gguf.format import GgufFormat
    from targets.profile import load_profile

    source = open_source(str(directory), cache())
    gguf = GgufFormat.resolve(load_profile(guide.target), source)
    parts = count_parts(source.tensors, source.config)
    # The order of the tokens and the tokenizer's bytes per token do not depend on the ratio.
    ranking = rank_vocabulary(Context(source, PruneOptions(), cache()))
    files = gguf.sizes(SizeRequest(source, ranking, guide.name, guide.name))
    unpruned = Sizes(source.vocab_size, source.intermediate_size)
    rows = []
    for ratio in RATIOS:
        options = PruneOptions(ratio=ratio, split=PROPORTIONAL, channel_grid=gguf.channel_grid)
        sizes = sizes_of(source, ranking, options) if ratio else unpruned
        rows.append(
            {
                "ratio": ratio,
                "parameters": pruned_parts(sizes, parts, unpruned).total,
                "vocab_size": sizes.vocab_size,
                "intermediate_size": sizes.intermediate_size,
                "file_bytes": files.file_bytes(sizes),
            }
        )
    named = {"quant": gguf.quant, "embedding_quant": gguf.embedding}
    return {"model": guide.name, "target": guide.target, **named, "parts": parts.as_dict(), "rows": rows}


def show(result: Mapping[str, Any]) -> str:
    """The table of one guide."""
    header = ["--ratio", "parameters", "vocab_size", "intermediate_size", f"file, {result['quant']}"]
    lines = [
        [
            f"{row['ratio']:g}" if row["ratio"] else "unpruned",
            f"{row['parameters'] / 1e6:,.1f}M",
            f"{row['vocab_size']:,}",
            f"{row['intermediate_size']:,}",
            f"{row['file_bytes'] / 1e6:,.0f} MB",
        ]
        for row in result["rows"]
    ]
    return table(header, lines)


def write_tables(models: Mapping[str, Mapping[str, Any]]) -> None:
    """Write every guide's table into its page."""
    for guide in GUIDES:
        write_table(guide.document, SCRIPT, show(models[guide.document]))


def main() -> None:
    """Measure and record, or write the tables."""
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("--work-dir", type=Path, help="keeps the checkpoints without contents between runs")
    parser.add_argument("--tables", action="store_true", help="only write the tables, from the recorded result")
    arguments = parser.parse_args()
    if not arguments.tables:
        if arguments.work_dir is None:
            parser.error("--work-dir is needed")
        models = {}
        for guide in GUIDES:
            directory = arguments.work_dir / guide.name
            if not directory.exists():
                write_hollow(directory, guide)
            models[guide.document] = measure(guide, directory)
        record(NAME, {"models": models})
    write_tables(recorded(NAME)["models"])


if __name__ == "__main__":
    main()
