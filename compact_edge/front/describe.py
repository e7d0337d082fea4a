"""Describes the record of a search over sizes and types (`compact_edge.front.record`) in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compact_edge.front.record import FRONT


def is_front(search: Mapping[str, Any]) -> bool:
    """Return whether a record is of a search over sizes and types."""
    return search.get("kind") == FRONT


def limit_words(limits: Mapping[str, Any]) -> str:
    """Return the options of the limits: `--fit 60.0 MB --max-loss 5%`."""
    words = []
    if limits["fit_bytes"] is not None:
        words.append(f"--fit {_mb(limits['fit_bytes'])}")
    if limits["memory_bytes"] is not None:
        words.append(f"--max-memory {_mb(limits['memory_bytes'])}")
    if limits["min_speed"] is not None:
        words.append(f"--min-speed {limits['min_speed']['value']:g} {limits['min_speed']['unit']}/s")
    if limits["max_loss"] is not None:
        words.append(f"--max-loss {100 * limits['max_loss']:g}%")
    return " ".join(words)


def chosen_of(search: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the chosen entry of the measured candidates."""
    chosen: Mapping[str, Any] = search["measured"][search["chosen"]]
    return chosen


def place_on_front(search: Mapping[str, Any]) -> str:
    """Return a sentence: where the chosen file is, compared with all other sizes and types."""
    chosen = chosen_of(search)
    name = f"{chosen['type']} at {_mb(chosen['bytes'])}"
    if not is_cut(chosen, search["unpruned"]):
        return f"no cut: {name} loses less than any cut that is as small"
    if any(_key(point) == _key(chosen) for point in search["front"]):
        return "on the front: no file of this size is predicted to lose less"
    smaller = [point for point in search["front"] if point["bytes"] <= chosen["bytes"]]
    best = min(smaller, key=lambda point: float(point["loss"]), default=None)
    if best is None or best["loss"] >= chosen["loss"]:
        return "close to the front: no file of this size is predicted to lose clearly less"
    return (
        f"not on the front: {best['type']} at {_mb(best['bytes'])} with vocab_size {best['vocab_size']} and "
        f"intermediate_size {best['intermediate_size']} is predicted to lose {best['loss']:+.1%}, this file loses "
        f"{chosen['loss']:+.1%}"
    )


def front_note(search: Mapping[str, Any]) -> str:
    """Return one line for a model card: how sizes and type were found, and where the file is."""
    return (
        f"sizes and type chosen among {search['candidates']:,} for {limit_words(search['limits'])}: "
        f"{len(search['measured'])} files measured on held-out text, the others predicted; {place_on_front(search)}"
    )


def is_cut(point: Mapping[str, Any], unpruned: Mapping[str, Any]) -> bool:
    """Return whether a point is smaller than the unpruned model in V' or I'."""
    return any(point[name] != unpruned[name] for name in ("vocab_size", "intermediate_size"))


def columns(texts: Sequence[str], *, memory: bool, speed: bool) -> list[str]:
    """Return the header of a table of candidates, after a first column."""
    return [
        "type",
        "vocab_size",
        "intermediate_size",
        "file",
        *(["memory"] if memory else []),
        *(["characters/s"] if speed else []),
        *texts,
        "loss",
        "worst",
        "predicted",
    ]


def cells(point: Mapping[str, Any], texts: Sequence[str], *, memory: bool, speed: bool) -> list[str]:
    """Return the row of a candidate for `columns`. Figures of texts are empty if it is not measured."""
    scores = point.get("bits_per_byte", {})
    worst = point.get("worst_text_loss")
    return [
        point["type"],
        str(point["vocab_size"]),
        str(point["intermediate_size"]),
        _mb(point["bytes"]),
        *([_mb(point["memory_bytes"])] if memory else []),
        *([f"{point['characters_per_second']:,.0f}"] if speed else []),
        *(f"{scores[name]:.3f}" if name in scores else "" for name in texts),
        f"{point['loss']:+.1%}" if point["measured"] else "",
        "" if worst is None else f"{worst:+.1%}",
        f"{point['predicted_loss']:+.1%}",
    ]


def _key(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return point["vocab_size"], point["intermediate_size"], point["type"]


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB"
