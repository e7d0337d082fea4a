"""The model card of an artifact: front matter that the Hub accepts, and what a reader must know before using it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.checkpoint_names import TOKENIZER_CONFIG
from compact.licences import NamingLicence, naming_licence
from compact.source import ModelSource
from compact.store import read_json_object

# Front matter that is carried over from the source's card where it is there.
_CARRIED = ("license", "license_name", "license_link", "language", "base_model", "tags")


@dataclass(frozen=True)
class CardFacts:
    """What the card states.

    Attributes:
        title: model name.
        files: names of the model's files, the one that is opened first.
        quant: its type.
        bits_per_weight: real ones, over all tensors.
        size_bytes: of the model's files.
        rows: (quantity, before, after) of the comparison, as text.
        notes: further lines: what was removed, what was calibrated on, what was checked.
        plan_id, source_id: sha256 ids, None for an unpruned baseline.
        use: lines that run it, in `use_language` (`console` or `python`).
        source_hub: `org/name@commit` of a source that came from the Hub, else None.
        licence: the licence that asks for lines of its own, else None.
        intro: paragraphs about the files.
        method: how a pruned model was made, in one line.
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
    """What a GGUF's `general.*` keys say of the model that it was made from: licence and languages."""
    matter = source_front_matter(directory)
    keys = ("license", "license_name", "license_link", "language")
    return {key: matter[key] for key in keys if isinstance(matter.get(key), (str, list))}


def source_front_matter(directory: Path) -> dict[str, Any]:
    """The YAML front matter of a checkpoint's README.md; empty where there is none, or where it is no YAML."""
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
    """The licence of a model that binds the name or the card of what is made from it, None where none does."""
    matter = source_front_matter(source.directory)
    return naming_licence(matter, source.directory, name=source.name, hub_id=source.hub_id)


def base_model_of(directory: Path) -> str | None:
    """The Hub id that the source's card names as its base model, None where it names none or several."""
    value = source_front_matter(directory).get("base_model")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and value.count("/") == 1 else None


def has_chat_template(checkpoint: Path) -> bool:
    """Whether a checkpoint directory brings a chat template, in a file of its own or in tokenizer_config.json."""
    if (checkpoint / "chat_template.jinja").is_file():
        return True
    path = checkpoint / TOKENIZER_CONFIG
    return path.is_file() and bool(read_json_object(path).get("chat_template"))


def front_matter(
    directory: Path,
    *,
    pruned: bool,
    hub_id: str | None = None,
    licence: NamingLicence | None = None,
    tags: Sequence[str] = ("gguf", "llama.cpp"),
) -> dict[str, Any]:
    """Front matter for an artifact made from the checkpoint in `directory`, which is the Hub's `hub_id` where known.

    `licence` is the one that was recognised; it stands in where the source's card names none. `tags` are the format's.
    """
    source = source_front_matter(directory)
    matter: dict[str, Any] = {key: source[key] for key in _CARRIED if source.get(key)}
    if "license" not in matter and licence is not None:
        matter.update({"license": "other", "license_name": licence.key, "license_link": licence.url})
    matter.setdefault("license", "unknown")
    if hub_id is not None:
        matter["base_model"] = hub_id
    carried = matter.get("tags") if isinstance(matter.get("tags"), list) else []
    own = [*tags, *(["compact-edge", "pruned"] if pruned else [])]
    matter["tags"] = [*own, *(tag for tag in carried or [] if tag not in own)]
    matter["pipeline_tag"] = "text-generation"
    if matter.get("base_model"):
        matter["base_model_relation"] = "quantized"
    return matter


def render(facts: CardFacts, matter: Mapping[str, Any]) -> str:
    """The card as Markdown."""
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
    """What the licence wants a reader to see."""
    lines = ["## Licence", ""]
    lines += [f"**{licence.credit}**", ""] if licence.credit else []
    lines += [f"This model is a modified one under the [{licence.title}]({licence.url})."]
    lines += [licence.notice + ("" if licence.notice.endswith(".") else ".")] if licence.notice else []
    return [*lines, *(f"{term[:1].upper()}{term[1:]}." for term in licence.terms), ""]
