"""Reads the chat templates of a checkpoint, from all files in which `AutoTokenizer` looks for them.

If there are `.jinja` files, Transformers uses only these. Otherwise it uses `chat_template` of tokenizer_config.json.
It ignores chat_template.json, which belongs to processors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from compact.base.errors import DamagedFileError, UnsafePathError
from compact.base.files import as_storage_error, read_json_object, sha256_file, write_text
from compact.checkpoints.names import CHAT_TEMPLATE, NAMED_TEMPLATES, TOKENIZER_CONFIG

PROCESSOR_FILE = "chat_template.json"
DEFAULT = "default"
# A name that is safe in a GGUF key and in a file name.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_ENDING = ".jinja"
_KEY = "chat_template"


def template_files(directory: Path) -> dict[str, Path]:
    """Return name -> `.jinja` file. As in Transformers, a named file `default.jinja` replaces chat_template.jinja."""
    main = directory / CHAT_TEMPLATE
    files = {DEFAULT: main} if main.is_file() else {}
    named = sorted((directory / NAMED_TEMPLATES).glob(f"*{_ENDING}"))
    return files | {path.name.removesuffix(_ENDING): path for path in named if path.is_file()}


def read_chat_templates(directory: Path) -> dict[str, str]:
    """Return name -> chat template, as `AutoTokenizer` has them.

    A template without a name is called `default`. If the model has only named templates, there is no `default`, and
    `apply_chat_template` needs a name. Empty templates are left out. All lines end with \\n: Jinja reads \\r\\n as \\n,
    but other template engines do not.

    Args:
        directory: a checkpoint, or the folder of an ONNX model.

    Raises:
        DamagedFileError: a template is not text, or a file is not UTF-8.
        StorageError: a file cannot be read.
    """
    templates = _all_templates(directory)
    return {name: plain_lines(template) for name, template in templates.items() if template.strip()}


def plain_lines(text: str) -> str:
    """Return the text with \\n at the end of each line, as Jinja reads it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _all_templates(directory: Path) -> dict[str, str]:
    if files := template_files(directory):
        return {name: _read(path) for name, path in files.items()}
    path = directory / TOKENIZER_CONFIG
    value = read_json_object(path).get(_KEY) if path.is_file() else None
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(entry, Mapping) and "name" in entry for entry in value):
        value = {entry["name"]: entry.get("template") for entry in value}
    templates = value if isinstance(value, Mapping) else {DEFAULT: value}
    if not all(isinstance(text, str) for pair in templates.items() for text in pair):
        raise DamagedFileError(
            f"{path}: {_KEY} is neither text nor a list of named templates", "correct it, or remove it"
        )
    return dict(templates)


def check_template_names(directory: Path) -> None:
    """Raise UnsafePathError if a chat template has a name that a file or a GGUF key cannot have."""
    for name in read_chat_templates(directory):
        if not PLAIN_NAME.match(name):
            raise UnsafePathError(
                f"{place_of(directory, name)}: chat template name {name[:60]!r} is not a plain name",
                "rename it: letters, digits, - and _ are allowed",
            )


def write_chat_templates(directory: Path, templates: Mapping[str, str]) -> None:
    """Write templates with plain names as `.jinja` files."""
    for name, template in templates.items():
        file = directory / CHAT_TEMPLATE if name == DEFAULT else directory / NAMED_TEMPLATES / f"{name}{_ENDING}"
        file.parent.mkdir(exist_ok=True)
        write_text(file, template)


def named_template_hashes(directory: Path) -> dict[str, str]:
    """Return path in the checkpoint -> sha256 of the files in `additional_chat_templates`."""
    files = sorted(path for path in template_files(directory).values() if path.parent.name == NAMED_TEMPLATES)
    return {f"{NAMED_TEMPLATES}/{path.name}": sha256_file(path) for path in files}


def place_of(directory: Path, name: str) -> str:
    """Return the file that contains a template, for messages: `FILE`, or `FILE: chat_template`."""
    file = template_files(directory).get(name)
    return f"{directory / TOKENIZER_CONFIG}: {_KEY}" if file is None else str(file)


def has_unused_templates(directory: Path) -> bool:
    """Return whether Transformers ignores templates of tokenizer_config.json, because there are `.jinja` files."""
    path = directory / TOKENIZER_CONFIG
    return bool(template_files(directory)) and path.is_file() and read_json_object(path).get(_KEY) is not None


def template_note(directory: Path) -> str | None:
    """Return one line for the user if Transformers ignores a chat template, otherwise None."""
    if has_unused_templates(directory):
        return f"the chat template comes from the .jinja files; Transformers ignores the one in {TOKENIZER_CONFIG}"
    if (directory / PROCESSOR_FILE).is_file() and not read_chat_templates(directory):
        return (
            f"no chat template: AutoTokenizer ignores {PROCESSOR_FILE}; to use its template, save it as {CHAT_TEMPLATE}"
        )
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path}: the file is not UTF-8", "save the template as UTF-8") from error
    except OSError as error:
        raise as_storage_error(error, path) from error
