"""Draws the pictures in docs/pictures: how COMPACT works, and the result of a recorded report.

    python docs/draw.py [--check]

`--check` ends with exit code 1 if a file differs from what this script draws. Figures come from benchmarks/results and
from the tokenizer of `tiny`. The picture of the scores uses invented numbers, and its page says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.svg_parts import MONO_WIDTH, arrow, picture, words  # noqa: E402
from runtime_bench.report.svg import circle, line, ratio_place, rect, whisker  # noqa: E402

PICTURES = Path(__file__).with_name("pictures")
RESULTS = ROOT / "benchmarks" / "results"
# 3 of 16 stripes: the share of channels that smollm2-135m loses at ratio 0.2 (1,248 of 1,536 stay).
_STRIPES, _DROPPED = 16, (2, 6, 11)
_TEXT = "A tokenizer splits unfamiliar identifiers, and the interpreter starts importlib."


def _recorded(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return value


def cut() -> str:
    """Which rows and columns each matrix loses."""
    body = [words(24, 28, "Embedding and LM head", "title"), words(24, 46, "row per token")]
    rows = 28416 / 49152 * 160
    body += [rect(24, 62, 120, rows, "keep"), rect(24, 62 + rows, 120, 160 - rows, "gone")]
    body += [
        words(152, 62 + rows / 2 + 4, "V′ rows stay", "ink"),
        words(152, 62 + rows + 38, "rarest tokens", "gonetext"),
    ]
    body += [words(152, 62 + rows + 54, "dropped", "gonetext")]
    body += [
        words(262, 28, "Attention", "title"),
        words(262, 46, "and norms: untouched"),
        rect(262, 62, 96, 96, "calm"),
    ]
    body += [words(430, 28, "FFN gate and up", "title"), words(430, 46, "row per channel")]
    body += [words(578, 28, "FFN down", "title"), words(578, 46, "column per channel")]
    height, width = 160 / _STRIPES, 128 / _STRIPES
    for index in range(_STRIPES):
        kind = "gone" if index in _DROPPED else "keep"
        body.append(rect(430, 62 + index * height, 120, height - 1, kind))
        body.append(rect(578 + index * width, 62, width - 1, 96, kind))
    body += [words(578, 184, "the same channels", "ink"), words(578, 200, "of a layer in all three", "ink")]
    body += [rect(24, 244, 12, 12, "keep"), words(42, 254, "kept, bit for bit"), rect(170, 244, 12, 12, "gone")]
    body.append(words(188, 254, "dropped"))
    described = (
        "The embedding and the LM head lose the rows of the rarest tokens. Attention and norms stay. Gate and up lose "
        "rows, down loses the same channels as columns."
    )
    return picture(720, 272, "What COMPACT drops", described, body)


class _Tokens:
    """The vocabulary of `tiny`, and how a text is split when only the best tokens of its ranking stay."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        from compact.vocabulary.vocabulary import always_kept, kept_ids, rank_by_merges, read_vocabulary

        path = ROOT / "compact" / "models" / "tiny" / "tokenizer.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = _recorded("quality-tiny")["rows"]
        self.size = next(row["vocab_size"] for row in rows if row["ratio"] == 0.2)
        self.tokenizer = Tokenizer.from_file(str(path))
        self.vocabulary = read_vocabulary(document, rows[0]["vocab_size"], path.name)
        always = always_kept(self.vocabulary, [], set())
        order = rank_by_merges(self.vocabulary, always)
        self.kept = frozenset(kept_ids(self.vocabulary, always, order, self.size))

    def stays(self, token: str) -> bool:
        return self.vocabulary.tokens[token] in self.kept

    def before(self, text: str) -> list[str]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).tokens)

    def after(self, token: str) -> list[str]:
        """Split a dropped token into the two tokens that it was merged from, recursively."""
        if self.stays(token):
            return [token]
        return [piece for part in self.vocabulary.derivations[token] for piece in self.after(part)]


def _shown(token: str) -> str:
    """Byte-level BPE writes a space as Ġ and a line end as Ċ."""
    return token.replace("Ġ", "␣").replace("Ċ", "⏎")


def vocabulary() -> str:
    """The merges in the order they were learned, the place of the cut, and its effect on a text."""
    tokens = _Tokens()
    merges = tokens.vocabulary.merges
    cut_at = next(n for n, pair in enumerate(merges) if not tokens.stays("".join(pair)))
    last = len(merges) - 1
    body = [words(24, 28, "Merges, in the order in which they were learned", "title")]
    y = 54.0
    for n in (0, 1, 2, None, cut_at - 2, cut_at - 1, cut_at, cut_at + 1, None, last - 1, last):
        if n is None:
            body.append(words(44, y, "⋮"))
            y += 18
            continue
        if n == cut_at:
            body += [line(24, y - 8, 330, y - 8, "cut"), words(336, y - 4, f"V′ = {tokens.size:,}", "gonetext")]
            y += 12
        left, right = merges[n]
        gone = n >= cut_at
        body.append(words(68, y, f"{n + 1:,}", "mono" + (" gonetext" if gone else ""), "end"))
        body.append(words(84, y, f"{_shown(left)} + {_shown(right)}", "mono" + ("" if gone else " ink")))
        body.append(words(226, y, "→ " + _shown(left + right), "mono" + (" gonetext" if gone else " ink")))
        y += 18
    body.append(words(420, 54, "first learned: the most frequent pairs", "ink"))
    body.append(words(420, 72, "of the text that the tokenizer was trained on"))
    body.append(words(420, y - 36, "last learned: the rarest tokens,", "gonetext"))
    body.append(words(420, y - 18, "dropped with their merges", "gonetext"))
    y += 22
    before = [(token, "box" if tokens.stays(token) else "gone") for token in tokens.before(_TEXT)]
    after = [(piece, "box" if kind == "box" else "keep") for token, kind in before for piece in tokens.after(token)]
    for name, pieces in (("before", before), ("after", after)):
        body.append(words(24, y, f"The text {name}: {len(pieces)} tokens", "title"))
        y = _boxes(body, pieces, y + 12) + 48
    described = (
        f"Of {len(merges):,} merges the first {cut_at:,} stay. A dropped token is written as the smaller tokens "
        "that it was merged from, so any text can still be written."
    )
    return picture(720, y - 14, "How the vocabulary is cut", described, body)


def _boxes(body: list[str], pieces: Sequence[tuple[str, str]], y: float) -> float:
    """Add tokens in boxes, on as many lines as needed; returns the y position of the last line."""
    x = 24.0
    for piece, kind in pieces:
        width = len(_shown(piece)) * MONO_WIDTH + 7
        if x + width > 700:
            x, y = 24.0, y + 26
        body.append(rect(x, y, width, 20, kind))
        if kind == "gone":
            body.append(rect(x + 2, y + 2, width - 4, 16, "paper", opacity=0.85))
        body.append(
            words(x + width / 2, y + 14, _shown(piece), "mono " + ("on" if kind == "keep" else "ink"), "middle")
        )
        x += width + 3
    return y


# Invented activations: rows are channels, columns are tokens.
_ACTIVATIONS = (
    (1.4, 0.3, 1.1, 0.2, 0.9, 1.2),
    (0.2, 0.1, 0.3, 0.1, 0.2, 0.1),
    (0.5, 1.3, 0.2, 0.4, 1.2, 0.3),
    (0.1, 0.3, 0.2, 1.9, 0.1, 0.2),
    (0.9, 0.8, 0.7, 0.2, 0.9, 0.6),
    (0.2, 1.5, 0.1, 0.3, 0.2, 1.4),
)
_EXAMPLE = (("the", 1), ("␣file", 1), ("␣is", 1), ("␣zig", 0), ("␣not", 1), ("␣open", 1))
_KEPT = 4


def act2() -> str:
    """Common act²: weighted squares, summed over the tokens; the best channels stay."""
    scores = [sum(weight * value**2 for (_, weight), value in zip(_EXAMPLE, row, strict=True)) for row in _ACTIVATIONS]
    best = sorted(range(len(scores)), key=lambda k: -scores[k])[:_KEPT]
    largest = max(value for row in _ACTIVATIONS for value in row) ** 2
    body = [words(24, 28, "Squares of the FFN's inner activations", "title"), words(470, 28, "Scores I", "title")]
    body.append(words(88, 72, "channel", anchor="end"))
    for column, (token, weight) in enumerate(_EXAMPLE):
        x = 104 + column * 54
        body.append(words(x + 24, 54, token, "mono " + ("ink" if weight else "gonetext"), "middle"))
        body.append(words(x + 24, 72, f"w = {weight}", "" if weight else "gonetext", "middle"))
        for row, values in enumerate(_ACTIVATIONS):
            y = 82 + row * 28
            body.append(rect(x, y, 48, 24, "box" if weight else "gone"))
            if weight:
                body.append(rect(x, y, 48, 24, "keep", opacity=min(values[column] ** 2 / largest * 1.6, 1.0)))
    for row, score in enumerate(scores):
        y = 82 + row * 28
        body.append(words(88, y + 16, str(row + 1), "ink", "end"))
        body.append(arrow(434, y + 12, 462, y + 12))
        width = score / max(scores) * 150
        body.append(rect(470, y + 2, max(width, 2), 20, "keep" if row in best else "gone"))
        place = "kept" if row in best else "dropped"
        body.append(words(478 + width, y + 16, f"{score:.1f}  {place}", "ink" if row in best else "gonetext"))
    note = "A dropped token has weight 0. Channel 4 responds mainly to that token, so it is dropped."
    body.append(words(104, 270, note))
    described = "Six channels over six tokens. The dropped token has weight 0. The four best of six channels stay."
    return picture(720, 288, "How channels are scored: common act²", described, body)


def widths() -> str:
    """Parameters by part of smollm2-135m at the recorded ratios."""
    before = _recorded("demo")["before"]["parameters"]
    rows = _recorded("quality-SmolLM2-135M-Instruct")["rows"]
    full = rows[0]
    body = [words(24, 28, "smollm2-135m: parameters by part, in millions", "title")]
    x = 24.0
    for name, kind in (("vocabulary", "keep"), ("attention and norms", "calm"), ("FFN", "third")):
        body += [rect(x, 42, 12, 12, kind), words(x + 18, 52, name)]
        x += 40 + 7 * len(name)
    scale = 500 / full["parameters"]
    for index, row in enumerate(rows):
        y = 72 + 50 * index
        parts = (
            (before["vocabulary"] * row["vocab_size"] / full["vocab_size"], "keep", "on"),
            (before["attention"] + before["norms"], "calm", "ink"),
            (before["ffn"] * row["intermediate_size"] / full["intermediate_size"], "third", "on"),
        )
        body.append(words(24, y + 16, f"ratio {row['ratio']:g}" if row["ratio"] else "unpruned", "ink"))
        x = 96.0
        for value, kind, label in parts:
            body += [rect(x, y, value * scale - 1, 24, kind)]
            body.append(words(x + value * scale / 2, y + 16, f"{value / 1e6:.1f}", label, "middle"))
            x += value * scale
        body.append(words(x + 8, y + 16, f"{row['parameters'] / 1e6:.1f}M", "name"))
        sizes = f"vocab_size {row['vocab_size']:,}, intermediate_size {row['intermediate_size']:,}"
        body.append(words(96, y + 38, sizes))
    described = "; ".join(f"ratio {row['ratio']:g}: {row['parameters']:,} parameters" for row in rows)
    return picture(720, 72 + 50 * len(rows) + 8, "Parameters by part", described, body)


_REPORT_ROWS = (
    ("size_bytes", "File size", "lower"),
    ("peak_rss_bytes", "Peak memory (RSS)", "lower"),
    ("load_warm_s", "Load time", "lower"),
    ("ttft_s:chat", "Time to first token", "lower"),
    ("prefill_characters_per_s", "Prefill, characters/s", "higher"),
    ("decode_tokens_per_s:depth-128", "Decode at depth 128, tokens/s", "higher"),
    ("characters_per_s", "Decode, characters/s", "higher"),
    ("bits_per_byte", "Bits per byte", "lower"),
)


def report() -> str:
    """The recorded run of `compact-edge bench`: pruned over baseline, with intervals."""
    from runtime_bench.report.words import figure, ratio_words

    run = _recorded("bench-smollm2-135m")["runs"][0]
    body = [words(24, 28, f"{run['title']}: pruned / baseline", "title")]
    left, middle, half, low = 396.0, 486.0, 100.0, 0.66
    step, bottom = 30, 62 + 30 * len(_REPORT_ROWS)

    def x(value: float) -> float:
        return ratio_place(value, 1 / low, middle, half)

    body += [words(x(1), 50, "1", anchor="middle"), line(x(1), 56, x(1), bottom - 6, "one")]
    for value in (0.75, 1 / 0.75):
        body.append(words(x(value), 50, f"{value:.2f}", anchor="middle"))
        body.append(line(x(value), 56, x(value), bottom - 6, "grid"))
    for index, (key, name, better) in enumerate(_REPORT_ROWS):
        metric = run["metrics"][key]
        ratio = metric["ratio"]
        tone = _tone(metric, better)
        y = 74 + step * index
        body.append(words(24, y + 4, name, "name"))
        said = f"{figure(metric['baseline'], metric['unit'])} → {figure(metric['pruned'], metric['unit'])}"
        body.append(words(left - 24, y + 4, said.replace(" characters/s", "").replace(" tokens/s", ""), anchor="end"))
        if ratio["low"] is not None and not ratio["exact"]:
            body += whisker(x(ratio["low"]), x(ratio["high"]), y, f"reach {tone}")
        # Better and worse also differ in shape.
        body.append(_mark(x(ratio["median"]), y, tone))
        body.append(words(604, y + 4, ratio_words(ratio), "value"))
    notes = f"{run['engine']['name']}, {run['settings']['threads']} thread, context {run['settings']['context']}, "
    notes += f"{run['pairs']} pairs; bars are 95% intervals.  ● better  ◆ worse  ○ no difference shown"
    body.append(words(24, bottom + 10, notes))
    return picture(744, bottom + 26, "Results of a report", run["summary"], body)


def _tone(metric: Mapping[str, Any], better: str) -> str:
    if metric["verdict"] == "no difference":
        return "calm"
    smaller = metric["ratio"]["median"] < 1
    return "good" if smaller == (better == "lower") else "bad"


def _mark(x: float, y: float, tone: str) -> str:
    if tone == "bad":
        return f'<path class="dot bad" d="M{x - 5.5:.1f} {y:.1f}l5.5 -5.5l5.5 5.5l-5.5 5.5z"/>'
    return circle(x, y, 4.2, "box paper" if tone == "calm" else f"dot {tone}")


DRAWINGS: Mapping[str, Callable[[], str]] = {
    "cut": cut,
    "vocabulary": vocabulary,
    "act2": act2,
    "widths": widths,
    "report": report,
}


def main() -> None:
    """Draw them all, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the files with what this draws")
    check = parser.parse_args().check
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        path, text = PICTURES / f"{name}.svg", draw()
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"error: {path.name} is stale\nhint: python docs/draw.py")


if __name__ == "__main__":
    main()
