"""Licences with requirements on the name of a derived model, its model card or a NOTICE file.

Most open licences require that a copy of their text is included (`legal_files`). The licences in this table require
more from anyone who publishes the pruned model. A build meets these requirements where it can: in the names that it
chooses, in the card, and in a NOTICE file. The table follows the texts of the licences. It is not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Files that must be copied together with the weights.
LEGAL_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*", "Notice*", "License*")
NOTICE = "NOTICE"


@dataclass(frozen=True)
class NamingLicence:
    """The requirements of one licence on a derived model.

    Attributes:
        key: the Hub's identifier (`license`, or `license_name` together with `license: other`).
        title: the licence's name.
        aliases: other identifiers in use, in lower case.
        heading: pattern of the heading in the licence's text.
        base_models: pattern of the Hub ids of models with this licence.
        name_prefix: prefix that the name of a derived model must have, or None.
        credit: text that the card must show prominently, or None.
        notice: text that a NOTICE file must contain, or None.
        terms: additional lines for the card.
        url: address of the licence's text.
    """

    key: str
    title: str
    aliases: tuple[str, ...]
    heading: str
    base_models: str
    name_prefix: str | None
    credit: str | None
    notice: str | None
    terms: tuple[str, ...]
    url: str


def _llama3(version: str, base_models: str, policy: str) -> NamingLicence:
    # Section 1.b.i of each: provide a copy of the agreement, display "Built with Meta Llama 3" (3) or "Built with
    # Llama" (3.1 and later), and begin the name of a model that the materials made or improved with "Llama 3" (3) or
    # "Llama". 1.b.iii: keep the attribution in a "Notice" text file. 1.b.iv: the acceptable use policy holds.
    first = version == "3"
    name = f"{'Meta ' if first else ''}Llama {version}"
    title = f"{name} Community License"
    return NamingLicence(
        key=f"llama{version}",
        title=title,
        aliases=(f"llama-{version}", f"llama{version}-community", f"llama-{version}-community", f"llama_{version}"),
        heading=rf"LLAMA\s+{re.escape(version)}\s+COMMUNITY\s+LICENSE",
        base_models=base_models,
        name_prefix="Llama-3" if first else "Llama",
        credit="Built with Meta Llama 3" if first else "Built with Llama",
        notice=(f"{name} is licensed under the {title}, Copyright © Meta Platforms, Inc. All Rights Reserved."),
        terms=(f"use is bound by the Acceptable Use Policy, {policy}",),
        url=f"https://www.llama.com/llama{version.replace('.', '_')}/license/",
    )


LICENCES: tuple[NamingLicence, ...] = (
    _llama3("3.3", r"meta-llama/Llama-3\.3-.*", "https://www.llama.com/llama3_3/use-policy"),
    _llama3("3.2", r"meta-llama/Llama-3\.2-.*", "https://www.llama.com/llama3_2/use-policy"),
    _llama3("3.1", r"meta-llama/(?:Meta-)?Llama-3\.1-.*", "https://www.llama.com/llama3_1/use-policy"),
    _llama3("3", r"meta-llama/Meta-Llama-3-.*", "https://www.llama.com/llama3/use-policy"),
    NamingLicence(
        # Section 1.b.i: provide a copy of the agreement. 1.b.ii: the attribution in a "Notice" text file. 1.b.iv: the
        # acceptable use policy. There is no rule for names.
        key="llama2",
        title="Llama 2 Community License",
        aliases=("llama-2", "llama2-community"),
        heading=r"LLAMA\s+2\s+COMMUNITY\s+LICENSE",
        base_models=r"meta-llama/Llama-2-.*",
        name_prefix=None,
        credit=None,
        notice=(
            "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
            "All Rights Reserved."
        ),
        terms=("use is bound by the Acceptable Use Policy, https://ai.meta.com/llama/use-policy",),
        url="https://ai.meta.com/llama/license/",
    ),
    NamingLicence(
        # Section 3.1: pass on the use restrictions of 3.2 as an enforceable provision, give a copy of the terms, say
        # prominently that files were modified, and a "Notice" text file with the line below.
        key="gemma",
        title="Gemma Terms of Use",
        aliases=("gemma-terms-of-use",),
        heading=r"GEMMA\s+TERMS\s+OF\s+USE",
        base_models=r"google/(?:gemma|codegemma|shieldgemma|medgemma)-(?!4).*",
        name_prefix=None,
        credit=None,
        notice=("Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"),
        terms=(
            "use is bound by the restrictions of section 3.2 of these terms and by the Gemma Prohibited Use Policy, "
            "https://ai.google.dev/gemma/prohibited_use_policy; whoever passes this model on passes them on too",
        ),
        url="https://ai.google.dev/gemma/terms",
    ),
    NamingLicence(
        # Section 4.b of the Qwen RESEARCH LICENSE (Qwen2.5-3B): "Built with Qwen" or "Improved using Qwen" in the
        # documentation of a model that was made from the materials. 3.c: the attribution in a "Notice" text file.
        key="qwen-research",
        title="Qwen RESEARCH LICENSE",
        aliases=("qwen-research-license",),
        heading=r"Qwen\s+RESEARCH\s+LICENSE",
        base_models=r"Qwen/Qwen2\.5-3B.*",
        name_prefix=None,
        credit="Built with Qwen",
        notice=(
            "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. "
            "All Rights Reserved."
        ),
        terms=("for non-commercial use only",),
        url="https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
    ),
    NamingLicence(
        # Section 4.b of the Qwen LICENSE (Qwen2.5-72B): the same line. 3.c: the same notice, with this licence's name.
        key="qwen",
        title="Qwen LICENSE",
        aliases=("qwen-license", "tongyi-qianwen"),
        heading=r"Qwen\s+LICENSE",
        base_models=r"Qwen/Qwen2\.5-72B.*",
        name_prefix=None,
        credit="Built with Qwen",
        notice=("Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved."),
        terms=(),
        url="https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
    ),
)

# How many characters of a licence file are read. The heading must be among them.
_HEADING_WITHIN = 2000


def legal_files(directory: Path) -> list[Path]:
    """Return the licence, notice and use-policy files of a checkpoint."""
    found = {path for pattern in LEGAL_FILES for path in directory.glob(pattern) if path.is_file()}
    return sorted(found)


def naming_licence(
    matter: Mapping[str, Any], directory: Path, *, name: str, hub_id: str | None = None
) -> NamingLicence | None:
    """Return the row of the table for a model's licence, or None.

    These are tried in order, each with all rows, until one matches:
        1. The licence that the card names.
        2. The heading of a licence file.
        3. The text of a notice.
        4. The Hub id of the model, and of the base models that the card names.
        5. The model's name, if the card names no licence.

    Args:
        matter: front matter of the model's card.
        directory: the checkpoint.
        name: the model's name without its owner.
        hub_id: the model's Hub id, or None if unknown.
    """
    named = [str(matter[key]).strip().lower() for key in ("license_name", "license") if matter.get(key)]
    bases = matter.get("base_model")
    ids = [str(value) for value in (hub_id, *(bases if isinstance(bases, list) else [bases])) if value]
    headings = [_heading(path) for path in legal_files(directory)]
    tests: tuple[Callable[[NamingLicence], bool], ...] = (
        lambda row: any(value == row.key or value in row.aliases for value in named),
        lambda row: any(re.search(row.heading, text, re.IGNORECASE) for text in headings),
        lambda row: row.notice is not None and any(row.notice in text for text in headings),
        lambda row: any(re.fullmatch(row.base_models, value, re.IGNORECASE) for value in ids),
        lambda row: not named and re.fullmatch(row.base_models.partition("/")[2], name, re.IGNORECASE) is not None,
    )
    return next((row for test in tests for row in LICENCES if test(row)), None)


def derived_name(name: str, licence: NamingLicence | None) -> str:
    """Return the name of a model derived from `name`, with the prefix that the licence requires."""
    if licence is None or licence.name_prefix is None:
        return name
    bare = re.sub(r"^meta-(?=llama)", "", name, flags=re.IGNORECASE)  # Meta-Llama-3-8B
    begins = re.escape(licence.name_prefix).replace(r"\-", "[-_ ]?")
    return bare if re.match(begins, bare, re.IGNORECASE) else f"{licence.name_prefix}-{bare}"


def write_notice(licence: NamingLicence | None, folder: Path) -> None:
    """Write the attribution that the licence requires to `NOTICE`, unless the folder has a notice file already."""
    if licence is None or licence.notice is None or any(p.name.lower().startswith("notice") for p in folder.iterdir()):
        return
    (folder / NOTICE).write_text(licence.notice + "\n", encoding="utf-8", newline="\n")


def licence_notes(
    licence: NamingLicence | None, directory: Path, *, card: bool, folder: str | None = None
) -> list[str]:
    """Return lines for the user: what was done for the licence, and what to do before publishing.

    Args:
        licence: the model's licence. Without one, there are no lines.
        directory: the source checkpoint, which may contain the licence's text.
        card: whether a card is written. If not, the line says what the user must write in it.
        folder: the name that the user chose for the output, if the licence may require another one.
    """
    if licence is None:
        return []
    says = f"the card {'says' if card else 'must say'} {licence.credit!r}"
    done = [
        f"the name must begin with {licence.name_prefix!r}" if licence.name_prefix else None,
        says if licence.credit else f"the card {'links' if card else 'must link'} the terms",
        "NOTICE holds the attribution" if licence.notice else None,
    ]
    texts = [_heading(path) for path in legal_files(directory) if not path.name.lower().startswith("notice")]
    has_text = any(re.search(licence.heading, text, re.IGNORECASE) for text in texts)
    copy = "" if has_text else "; the source brings no copy of the licence: add one before you publish"
    notes = [
        f"{licence.title}: {', '.join(part for part in done if part)}; read {licence.url} before you publish{copy}"
    ]
    if folder is not None and derived_name(folder, licence) != folder:
        notes.append(f"{folder}: rename it to {derived_name(folder, licence)} before you publish it")
    return notes


def _heading(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_HEADING_WITHIN)
    except OSError:
        return ""
