"""Renders the model card of a release folder: files, targets, measurements, and the command to publish it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compact.base.licences import LICENCES, NamingLicence

# The figures of a report on the card: (key, heading, divisor, digits).
_FIGURES = (
    ("decode_tokens_per_s", "decode, tokens/s", 1.0, 1),
    ("prefill_tokens_per_s", "prefill, tokens/s", 1.0, 1),
    ("load_warm_s", "load, s", 1.0, 2),
    ("peak_rss_bytes", "peak RSS, MB", 1e6, 0),
)


@dataclass(frozen=True)
class Entry:
    """One artifact of the folder: a file, or a folder in it.

    Attributes:
        place: name in the folder.
        artifact: type and size.
        targets: target name -> None, or the reason why the file does not fit the target.
        measured: bits per byte and checks.
        notes: notes for the user about the type.
        use: `language` and `lines` of the usage example.
    """

    place: str
    artifact: Mapping[str, Any]
    targets: Mapping[str, str | None]
    measured: Mapping[str, Any]
    notes: Sequence[str]
    use: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """A benchmark report on one of the files.

    Attributes:
        place: name of the file.
        folder: folder of the report, relative to the card.
        document: the report.
    """

    place: str
    folder: str
    document: Mapping[str, Any]


@dataclass(frozen=True)
class RepositoryCard:
    """The facts on the card of a folder.

    Attributes:
        name: name of the folder.
        folders: whether each artifact is a separate folder.
        matter: front matter.
        licence: key of the licence if it requires lines on the card, otherwise None.
        model: the source, the method, and the sizes before and after.
        plan_id: id of the plan.
        profiles: targets of the release.
        entries: the files, in the order of the release.
        reports: benchmark reports.
        owner: Hub user or organisation that publishes, or None.
    """

    name: str
    folders: bool
    matter: Mapping[str, Any]
    licence: str | None
    model: Mapping[str, Any]
    plan_id: str
    profiles: Mapping[str, Mapping[str, Any]]
    entries: Sequence[Entry]
    reports: Sequence[Report]
    owner: str | None


def render_card(card: RepositoryCard) -> str:
    """Return the card as Markdown. It ends with the command that publishes the folder."""
    import yaml

    head = yaml.safe_dump(dict(card.matter), sort_keys=False, allow_unicode=True).strip()
    lines = ["---", head, "---", "", f"# {card.name}", "", *_intro(card), *_files(card), *_targets(card)]
    lines += [*_measured(card), *_notes(card), *_licence(card), *_use(card), *_provenance(card), *_publish(card)]
    return "\n".join(lines)


def _intro(card: RepositoryCard) -> list[str]:
    model, sizes = card.model, card.model["parameters"]
    removed = 1 - sizes["after"] / sizes["before"]
    vocabulary, inner = model["vocab_size"], model["intermediate_size"]
    return [
        f"{_text(model['name'])} with {removed:.1%} of its parameters removed by COMPACT "
        f"([arXiv 2509.06836](https://arxiv.org/abs/2509.06836)): {sizes['before'] / 1e6:.1f}M -> "
        f"{sizes['after'] / 1e6:.1f}M parameters, vocabulary {vocabulary['before']} -> {vocabulary['after']}, "
        f"FFN {inner['before']} -> {inner['after']}. It is a standard model and needs no custom code.",
        "",
    ]


def _files(card: RepositoryCard) -> list[str]:
    lines = ["## Files", "", "| file | type | size | bits per weight | bits per byte | unpruned | for |"]
    lines += ["|---|---|---:|---:|---:|---:|---|"]
    for entry in card.entries:
        artifact, bits = entry.artifact, entry.measured.get("bits_per_byte", {})
        names = ", ".join(f"`{name}`" for name, refusal in entry.targets.items() if refusal is None)
        lines.append(
            f"| [`{entry.place}`]({entry.place}) | {artifact['quant']}, embedding {artifact['embedding_type']} | "
            f"{artifact['size_bytes'] / 1e6:.1f} MB | {artifact['bits_per_weight']:.2f} | "
            f"{_number(bits.get('pruned'), 3)} | {_number(bits.get('unpruned'), 3)} | {names} |"
        )
    text = next((e.measured["evaluation"]["text"] for e in card.entries if e.measured.get("evaluation")), None)
    on = "" if text is None else f" on {_text(text)}"
    return [
        *lines,
        "",
        f"Bits per byte{on}: lower is better. `unpruned` is the original model at the same type. Unlike perplexity per "
        "token, bits per byte can be compared across vocabularies.",
        "",
    ]


def _targets(card: RepositoryCard) -> list[str]:
    lines = ["## Targets", "", "| target | device | file |", "|---|---|---|"]
    for name, profile in card.profiles.items():
        places = [entry.place for entry in card.entries if entry.targets.get(name, "") is None]
        if places:
            listed = ", ".join(f"`{place}`" for place in places)
            lines.append(f"| `{name}` | {_text(profile['description'])} | {listed} |")
    refused = [
        f"- `{entry.place}` is not for `{name}`: {_text(refusal)}"
        for entry in card.entries
        for name, refusal in entry.targets.items()
        if refusal is not None
    ]
    return [*lines, "", *refused, *([""] if refused else [])]


def _measured(card: RepositoryCard) -> list[str]:
    if not card.reports:
        return []
    headings = " | ".join(heading for _, heading, _, _ in _FIGURES)
    lines = [
        "## Measured",
        "",
        f"| device | file | engine | {headings} | report |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for report in card.reports:
        document = report.document
        cells = " | ".join(_figure(document, key, scale, digits) for key, _, scale, digits in _FIGURES)
        engine = _text(str(document["engine"].get("name", "")))
        link = f"[report]({report.folder}/report.md)"
        lines.append(f"| {_text(device_name(document))} | `{report.place}` | {engine} | {cells} | {link} |")
    return [
        *lines,
        "",
        "Batch size 1. The ratio to the unpruned model of the same type is in brackets. Each report describes the "
        "measurement and has the raw samples.",
        "",
    ]


def device_name(document: Mapping[str, Any]) -> str:
    """Return the name of the device in a report."""
    device = document["device"]
    return str(device.get("model") or device.get("machine") or "unknown device")


def _figure(document: Mapping[str, Any], key: str, scale: float, digits: int) -> str:
    """Return the median of the first metric with a key, and its ratio to the unpruned model."""
    for metric in document["metrics"]:
        if str(metric["key"]).partition(":")[0] == key and metric["pruned"] is not None:
            ratio = metric["ratio"]
            compared = "" if ratio is None else f" ({ratio['median']:.2f})" if "median" in ratio else ""
            return f"{metric['pruned']['median'] / scale:,.{digits}f}{compared}"
    return "-"


def _notes(card: RepositoryCard) -> list[str]:
    model = card.model
    calibration = model["calibration"]
    scored = "" if calibration is None else f", {calibration['n_tokens']} tokens of {_text(str(calibration['name']))}"
    notes = [f"method: {_text(model['method'])}{scored}; tokens ranked by {_text(model['ranking'])}"]
    for entry in card.entries:
        parity = entry.measured.get("parity")
        if parity is not None:
            how = f"in part ({_text(str(entry.measured['reason']))})" if parity["partial"] else "in full"
            checks = ", ".join(str(check["name"]) for check in parity["checks"])
            notes.append(f"`{entry.place}` was checked {how} against Transformers: {checks}")
    for entry in card.entries:
        notes += [note for note in map(_text, entry.notes) if note not in notes]
    return ["## Notes", "", *(f"- {note}" for note in notes), ""]


def _licence(card: RepositoryCard) -> list[str]:
    from exporters.card import licence_lines

    licence = licence_named(card.licence)
    return [] if licence is None else licence_lines(licence)


def licence_named(key: str | None) -> NamingLicence | None:
    """Return the licence with a key, or None if no licence has it."""
    return next((row for row in LICENCES if row.key == key), None)


def _use(card: RepositoryCard) -> list[str]:
    use = card.entries[0].use
    place = card.entries[0].place
    lead = [] if not card.folders else [f"In one of the folders, such as `{place}`:", ""]
    return ["## Use", "", *lead, f"```{use['language']}", *map(str, use["lines"]), "```", ""]


def _provenance(card: RepositoryCard) -> list[str]:
    hub = card.model["hub"]
    origin = f"`{_text(str(hub))}`, " if hub else ""
    return [
        *("## Provenance", ""),
        f"- source: {origin}sha256 `{card.model['source_id']}` (of the files listed in `manifest.json`)",
        f"- plan: `plan.json`, id `{card.plan_id}`: every kept token and FFN channel",
        "- check the files: `sha256sum -c SHA256SUMS`, or `compact-edge verify .`; rebuild and compare "
        "them: `compact-edge verify . --rebuild`",
        "",
    ]


def _publish(card: RepositoryCard) -> list[str]:
    name = f"{card.owner or 'YOUR_NAME'}/{card.name}"
    return ["## Publish", "", "In this folder:", "", "```console", f"hf upload {name} . .", "```", ""]


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"


def _text(text: str) -> str:
    """Format text from another source for one line of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")
