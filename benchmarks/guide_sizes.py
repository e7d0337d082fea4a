"""What the two guides build, in figures that need no weights: parameters, sizes and bytes of the file at each ratio.

    python benchmarks/guide_sizes.py --work-dir DIR       # a minute; needs COMPACT_EDGE_DATA for the tokenizers
    python benchmarks/guide_sizes.py --tables             # write the tables anew from what was recorded

A model's published configuration, at its full depth, and its own tokenizer give the shapes; a checkpoint of these
shapes without contents stands in for the weights, whose values no size depends on. Types are those that `build`
chooses for the guide's target. Bytes are those of `exporters.gguf_size`, at most some hundred too many.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import DOCS, cache, data_folder, record, recorded, table, with_table  # noqa: E402
from benchmarks.family_configs import MODELS  # noqa: E402

NAME, SCRIPT = "guide-sizes", "guide_sizes"
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4)


@dataclass(frozen=True)
class Guide:
    """A guide's model: its row in `family_configs`, its full depth, and what it is built for."""

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
    """A checkpoint of the model's shapes whose tensors are a hole in a file: zeros that take no room."""
    from compact.families import FAMILIES
    from compact.layout import expected_shapes

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
    with (out / "model.safetensors").open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        file.truncate(8 + len(words) + end)


def measure(guide: Guide, directory: Path) -> dict[str, Any]:
    """Parameters and sizes of a guide's model at every ratio."""
    from compact.budget import Sizes, count_parts, pruned_parts
    from compact.prune import PruneOptions
    from compact.ranking import rank_vocabulary
    from compact.sizes import sizes_of
    from compact.source import open_source
    from exporters.format_gguf import GgufFormat
    from exporters.format_values import SizeRequest
    from targets.profile import load_profile

    source = open_source(str(directory), cache())
    gguf = GgufFormat.resolve(load_profile(guide.target), source)
    parts = count_parts(source.tensors, source.config)
    # Neither the order of the tokens nor what the tokenizer takes in the file depends on a ratio.
    ranking = rank_vocabulary(source, PruneOptions())
    files = gguf.sizes(SizeRequest(source, ranking, guide.name, guide.name))
    unpruned = Sizes(source.vocab_size, source.intermediate_size)
    rows = []
    for ratio in RATIOS:
        options = PruneOptions(ratio=ratio, channel_grid=gguf.channel_grid)
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
    """Every guide's table into its page."""
    for guide in GUIDES:
        path = DOCS / guide.document
        text = path.read_text(encoding="utf-8")
        path.write_text(with_table(text, SCRIPT, show(models[guide.document])), encoding="utf-8")


def main() -> None:
    """Measure and record, or write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--tables", action="store_true", help="write the tables anew from what was recorded")
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
