"""The table of docs/bench.md that says how far the bench can be trusted, from what was recorded.

python benchmarks/bench_aa.py --artifact FILE.gguf
python benchmarks/bench_agreement.py --artifact FILE.gguf
python benchmarks/bench_checks.py        # writes the table
"""

from __future__ import annotations

from common import recorded, table, write_table

SCRIPT = "bench_checks"


def show() -> str:
    """The table: the artifact against itself, and the agreement with llama-bench."""
    aa, agreement = recorded("bench-aa"), recorded("bench-agreement")
    ratios = aa["median_log_ratio"]
    rows = [
        [
            f"{aa['artifact']} against itself, {aa['runs']} runs of {aa['pairs']} pairs ({aa['engine']})",
            f"{aa['share_that_holds_1']:.1%} of {aa['intervals']} intervals hold 1",
        ],
        ["median log ratio of prefill", f"{ratios['prefill_tokens_per_s']:+.4f}"],
        ["median log ratio of decode at depth 128", f"{ratios['decode_tokens_per_s:depth-128']:+.4f}"],
    ]
    medians = agreement["medians_tokens_per_s"]
    for what in ("prefill", "decode"):
        pair = f"{medians['bench'][what]:.1f} / {medians['llama-bench'][what]:.1f} tokens/s"
        rows.append(
            [f"{what}, bench / llama-bench, {agreement['rounds']} rounds", f"{pair}, {agreement['ratio'][what]:.3f}"]
        )
    return table(("check", "found"), rows)


if __name__ == "__main__":
    write_table("bench.md", SCRIPT, show())
