"""The model card of an artifact: front matter for the Hub, and the facts that a user needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.licences import NamingLicence, naming_licence
from compact.sources.model_source import ModelSource
from compact.vocabulary.chat_templates import DEFAULT, read_chat_templates

# Front matter keys that are copied from the source's card, if present.
_CARRIED = ("license", "license_name", "license_link", "language", "base_model", "tags")


@dataclass(frozen=True)
class CardFacts:
    """The facts that the card states.

    Attributes:
        title: model name.
        files: names of the model's files. The file to open comes first.
        quant: type of the weights.
        bits_per_weight: actual average over all tensors.
        size_bytes: total size of the model's files.
        rows: comparison table, (quantity, before, after) as text.
        notes: list items: what was removed, the calibration text, the checks.
        plan_id: sha256 id of the plan; None for an unpruned baseline.
        source_id: sha256 id of the source.
        use: lines that run the model, in `use_language` (`console` or `python`).
        source_hub: `org/name@commit` if the source came from the Hub, otherwise None.
        licence: the licence, if it requires lines on the card, otherwise None.
        intro: paragraphs about the files.
        method: one line on how a pruned model was made.
    """

    title: str
    files: Sequence[str]
    quant: str
    bits_per_weight: float
    size_bytes: int
    rows: Sequence[tuple[str, str, str]]
    notes: Sequence[str]
    plan_id: str | None
    source_id: str
    use: Sequence[str]
    source_hub: str | None = None
    licence: NamingLicence | None = None
    intro: Sequence[str] = ()
    use_language: str = "console"
    method: str = ""


def carried_to_gguf(directory: Path) -> dict[str, Any]:
    """Return the front matter that a GGUF's `general.*` keys take from the source model: licence and languages."""
    matter = source_front_matter(directory)
    keys = ("license", "license_name", "license_link", "language")
    return {key: matter[key] for key in keys if isinstance(matter.get(key), (str, list))}


def source_front_matter(directory: Path) -> dict[str, Any]:
    """Return the YAML front matter of a checkpoint's README.md; empty if it is missing or not valid YAML."""
    import yaml
    from huggingface_hub import metadata_load

    readme = directory / "README.md"
    if not readme.is_file():
        return {}
    try:
        value = metadata_load(readme)
    except (yaml.YAMLError, ValueError, UnicodeDecodeError):
        return {}
    return dict(value) if isinstance(value, Mapping) else {}


def licence_of(source: ModelSource) -> NamingLicence | None:
    """Return the licence if it has rules for the name or card of derived models, otherwise None."""
    matter = source_front_matter(source.directory)
    return naming_licence(matter, source.directory, name=source.name, hub_id=source.hub_id)


def base_model_of(directory: Path) -> str | None:
    """Return the Hub id of the base model in the source's card; None unless it names exactly one."""
    value = source_front_matter(directory).get("base_model")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and value.count("/") == 1 else None


def has_chat_template(checkpoint: Path) -> bool:
    """Return whether a checkpoint has a chat template that is used without a name."""
    return DEFAULT in read_chat_templates(checkpoint)


def front_matter(
    directory: Path,
    *,
    pruned: bool,
    hub_id: str | None = None,
    licence: NamingLicence | None = None,
    tags: Sequence[str] = ("gguf", "llama.cpp"),
) -> dict[str, Any]:
    """Return the front matter for an artifact.

    Args:
        directory: checkpoint that the artifact was made from.
        pruned: whether the artifact is pruned; adds tags.
        hub_id: Hub id of the checkpoint, if known.
        licence: recognised licence, used if the source's card names none.
        tags: tags of the format.
    """
    source = source_front_matter(directory)
    matter: dict[str, Any] = {key: source[key] for key in _CARRIED if source.get(key)}
    if "license" not in matter and licence is not None:
        matter.update({"license": "other", "license_name": licence.key, "license_link": licence.url})
    matter.setdefault("license", "unknown")
    if hub_id is not None:
        matter["base_model"] = hub_id
    carried = matter.get("tags") if isinstance(matter.get("tags"), list) else []
    added = [*tags, *(["compact-edge", "pruned"] if pruned else [])]
    matter["tags"] = [*added, *(tag for tag in carried or [] if tag not in added)]
    matter["pipeline_tag"] = "text-generation"
    if matter.get("base_model"):
        matter["base_model_relation"] = "quantized"
    return matter


def render(facts: CardFacts, matter: Mapping[str, Any]) -> str:
    """Return the card as Markdown."""
    import yaml

    head = yaml.safe_dump(dict(matter), sort_keys=False, allow_unicode=True).strip()
    lines = ["---", head, "---", "", f"# {facts.title}", ""]
    lines += [
        f"{' and '.join(f'`{name}`' for name in facts.files)}: {facts.size_bytes / 1e6:.1f} MB, {facts.quant}, "
        f"{facts.bits_per_weight:.2f} bits per weight.",
        "",
    ]
    for paragraph in facts.intro:
        lines += [paragraph, ""]
    if facts.rows:
        lines += ["| | before | after |", "|---|---:|---:|"]
        lines += [f"| {name} | {before} | {after} |" for name, before, after in facts.rows]
        lines += [
            "",
            "Before and after are files of the same type. Bits per byte compare models of different "
            "vocabularies; perplexity per token does not.",
            "",
        ]
    lines += [*(f"- {note}" for note in facts.notes), ""] if facts.notes else []
    lines += licence_lines(facts.licence) if facts.licence is not None else []
    lines += ["## Use", "", f"```{facts.use_language}", *facts.use, "```", ""]
    origin = f"`{facts.source_hub}`, " if facts.source_hub else ""
    lines += [
        *("## Provenance", ""),
        f"- source: {origin}sha256 `{facts.source_id}` (of the files listed in `manifest.json`)",
    ]
    if facts.plan_id is not None:
        lines += [
            f"- plan: `plan.json`, id `{facts.plan_id}`: every kept token and FFN channel",
            f"- method: {facts.method}",
        ]
    lines += ["- check the files: `sha256sum -c SHA256SUMS`, or `compact-edge verify .`", ""]
    return "\n".join(lines)


def licence_lines(licence: NamingLicence) -> list[str]:
    """Return the lines that the licence requires on the card."""
    lines = ["## Licence", ""]
    lines += [f"**{licence.credit}**", ""] if licence.credit else []
    lines += [f"This model is a modified one under the [{licence.title}]({licence.url})."]
    lines += [licence.notice + ("" if licence.notice.endswith(".") else ".")] if licence.notice else []
    return [*lines, *(f"{term[:1].upper()}{term[1:]}." for term in licence.terms), ""]
