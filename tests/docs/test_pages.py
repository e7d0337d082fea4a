"""Pages and pictures that scripts make are what they make now; the site needs nobody else's server."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compact_edge.cli.main import COMMANDS
from docs import draw, generate_cli, generate_targets
from docs.site_hooks import with_plain_bars, with_site_links
from runtime_bench.report.write import write_report
from targets.profile import list_profiles
from tests.docs.documents import DOCUMENTS, ROOT, blocks, every_option, prose_code
from tests.runtime_bench import synthetic_run

DOCS = ROOT / "docs"


def test_the_page_of_commands_is_what_click_says() -> None:
    text = generate_cli.PAGE.read_text(encoding="utf-8")
    assert generate_cli.page() == text, "python docs/generate_cli.py"
    for name in COMMANDS:
        assert f"\n## compact-edge {name}\n" in text
    for option in every_option() - {"--version", "--debug"}:
        assert re.search(rf"`[^`]*{re.escape(option)}\b", text), f"{option} is not on the page"


def test_the_table_of_targets_is_that_of_the_profiles() -> None:
    text = generate_targets.PAGE.read_text(encoding="utf-8")
    assert generate_targets.page(text) == text, "python docs/generate_targets.py"
    for profile in list_profiles():
        assert f"| `{profile.name}` |" in text


@pytest.mark.parametrize("name", draw.DRAWINGS)
def test_pictures_are_what_is_drawn(name: str) -> None:
    path = draw.PICTURES / f"{name}.svg"
    text = path.read_text(encoding="utf-8")
    assert draw.DRAWINGS[name]() == text, "python docs/draw.py"
    root = ET.fromstring(text)
    labels = [element.text for element in root if element.tag.endswith(("title", "desc"))]
    assert len(labels) == 2 and all(labels), "told to those who cannot see it"
    assert "href" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "prefers-color-scheme:dark" in text


def test_every_picture_is_drawn_and_shown() -> None:
    assert {path.stem for path in draw.PICTURES.glob("*.svg")} == set(draw.DRAWINGS)
    shown = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    for name in draw.DRAWINGS:
        assert f"(pictures/{name}.svg)" in shown


@pytest.mark.parametrize(
    ("text", "outside", "led"),
    [
        ("[a](../CONTRIBUTING.md#rules)", False, "[a](contributing.md#rules)"),
        ("[a](../README.md)", False, "[a](index.md)"),
        ("[a](types.md)", False, "[a](types.md)"),
        ("[a](docs/types.md#the-list)", True, "[a](types.md#the-list)"),
        (
            "[a](CHANGELOG.md), [b](https://example.org/docs/x)",
            True,
            "[a](changelog.md), [b](https://example.org/docs/x)",
        ),
    ],
)
def test_links_out_of_the_folder_are_led_to_pages(text: str, outside: bool, led: str) -> None:
    assert with_site_links(text, outside=outside) == led


def test_a_bar_in_the_code_of_a_table_is_shown_as_one() -> None:
    assert with_plain_bars("| `a\\|b` | c \\| d |\nnot `a\\|b`") == "| `a|b` | c \\| d |\nnot `a\\|b`"


def test_links_are_right_where_the_repository_is_read() -> None:
    wrong = []
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            file = target.partition("#")[0]
            if file and not target.startswith("http") and not (path.parent / file).is_file():
                wrong.append(f"{path.name}: {target}")
    assert wrong == []


@pytest.mark.parametrize(
    "file", ["docs/index.md", "mkdocs.yml", "pyproject.toml", "action.yml", "compact_edge/cli/main.py"]
)
def test_the_first_sentence_is_the_same_everywhere(file: str) -> None:
    sentence = (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n")[1]
    assert sentence.endswith(".") and sentence in (ROOT / file).read_text(encoding="utf-8")


class _Assets(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.found.append(names.get("src") or "")
        elif tag == "link" and names.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(names.get("href") or "")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_works_offline(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert {"index.html", "cli.html", "contributing.html", "changelog.html"} <= {page.name for page in pages}
    assert len(pages) >= len(list(DOCS.glob("*.md"))) + 2
    for page in pages:
        assets = _Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        for asset in filter(None, assets.found):
            assert not re.match(r"(https?:)?//", asset), f"{page.name} fetches {asset}"
            if page.name != "404.html" and not asset.startswith("data:"):
                assert (page.parent / asset.partition("?")[0]).is_file(), f"{page.name}: {asset} is not there"
    assert not list((tmp_path / "site").rglob("*.py"))


@pytest.mark.slow
def test_the_examples_in_python_run(tmp_path: Path) -> None:
    """All of docs/api.md, as they stand, in a folder with a report."""
    (tmp_path / "report").mkdir()
    write_report(tmp_path / "report", synthetic_run.facts(), synthetic_run.samples(6))
    examples = "\n".join(blocks("docs/api.md", "python"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMPACT_EDGE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", examples], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "vocab_size 16384 -> " in done.stdout and " bits per weight" in done.stdout
    assert "size_bytes: 0.79" in done.stdout or "size_bytes: 0.80" in done.stdout
    assert "parity gate passed: True" in done.stdout and "bits per byte against the unpruned model" in done.stdout
    assert "'--ratio': 'much' is not a valid float | see compact-edge build --help | 2" in done.stdout
    assert (tmp_path / "tiny-pruned" / "plan.json").is_file()
    assert (tmp_path / "tiny-compact" / "gguf" / "manifest.json").is_file()


_PACKAGES = ("compact", "exporters", "targets", "runtime_bench", "compact_edge", "tests", "benchmarks")
_FOLDERS = {*_PACKAGES, "docs", "examples", ".ci", ".github"}
# A row of a table of rooms: floor, room, what is there, and the module to open first.
_ROOM = re.compile(r"^\| \d+ \| `([\w/]+)/` \| .+ \| `(\w+\.py)` \|$", re.MULTILINE)


def _missing_paths(code: str) -> list[str]:
    """The paths below the folders of this repository that a piece of code names and that do not exist."""
    return [
        word
        for word in code.split()
        if word.partition("/")[0] in _FOLDERS and not re.search(r"\*|NAME", word) and not (ROOT / word).exists()
    ]


def _missing(code: str) -> list[str]:
    """The same, and the dotted modules that do not exist."""
    missing = _missing_paths(code)
    for word in code.split():
        module = word.replace(".", "/")
        is_dotted = re.fullmatch(rf"({'|'.join(_PACKAGES)})(\.\w+)+", word)
        if is_dotted and not ((ROOT / module).is_dir() or (ROOT / f"{module}.py").is_file()):
            missing.append(word)
    return missing


def test_files_and_modules_of_contributing_exist() -> None:
    codes = prose_code("CONTRIBUTING.md")
    missing = [name for code in codes for name in _missing(code)]
    rooms = _ROOM.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    missing += [f"{room}/{module}" for room, module in rooms if not (ROOT / room / module).is_file()]
    assert missing == []
    # A file is named by its whole path, except in the tables of rooms.
    bare = {code for code in codes if re.fullmatch(r"\w+\.(py|csv|css)", code)} - {module for _, module in rooms}
    assert bare == set()


@pytest.mark.parametrize("document", [*DOCUMENTS, "benchmarks/README.md"])
def test_files_that_a_document_names_exist(document: str) -> None:
    assert [path for code in prose_code(document) for path in _missing_paths(code)] == []


def test_a_missing_file_or_module_is_found() -> None:
    assert _missing("compact/nowhere.py") == ["compact/nowhere.py"]
    assert _missing("python -m benchmarks.quality.nothing") == ["benchmarks.quality.nothing"]
    assert _missing("benchmarks/results/*.json") == _missing("compact.base.errors") == _missing(".ci/run lint") == []


def test_names_of_the_python_page_are_there() -> None:
    """Each name of its table can be imported: `package.module.name(...)`."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:compact|exporters|targets|runtime_bench)\.[\w.]+)", text)
    assert len(set(names)) > 12
    for name in set(names):
        if (ROOT / name).is_file() or name.endswith((".json", ".schema.json")):
            continue
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
