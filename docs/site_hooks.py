"""Hooks of mkdocs for this site: pages from outside docs/, and the links to and from them.

Links in the documents work in the repository. These hooks rewrite links that leave docs/ to the page of the site that
shows the file. The strict build refuses all other links that leave docs/.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# File at the top of the repository -> page of the site.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# Files that become pages as they are; docs/index.md has its own text.
BROUGHT = ("CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    from mkdocs.structure.files import File

    for name in BROUGHT:
        files.append(File.generated(config, PAGES[name], content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links for the site, and tables for its Markdown dialect."""
    del config, files
    outside = page.file.src_uri in {PAGES[name] for name in BROUGHT}
    return with_plain_bars(with_site_links(markdown, outside=outside))


def with_plain_bars(markdown: str) -> str:
    """Replace `\\|` by `|` in the code of a table: GitHub needs the backslash, Python-Markdown would show it."""
    code = re.compile(r"`[^`]*`")
    return "\n".join(
        code.sub(lambda match: match[0].replace("\\|", "|"), line) if line.startswith("|") else line
        for line in markdown.split("\n")
    )


def with_site_links(markdown: str, *, outside: bool) -> str:
    """Rewrite the links for the site.

    Args:
        markdown: a document.
        outside: it is at the top of the repository, not in docs/.
    """

    def led(match: re.Match[str]) -> str:
        target = match[1]
        if outside:
            return PAGES.get(target) or target.removeprefix("docs/")
        name = target.removeprefix("../")
        return PAGES.get(name, target) if name != target else target

    return _LINK.sub(led, markdown)
