"""Child process of `compact.vocabulary.chat_rendering`: renders chat templates with a limit of memory.

This child has the same Jinja environment as Transformers (a
sandbox, `raise_exception`, `strftime_now`, `tojson`, the tag `generation`, `break` and `continue`), but starts faster.

The first line of stdin is `{"template", "special", "day"}`. Each later line is a request with `conversations` and
`options`. The answer is one line with `texts` and `errors`, or with `missing`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

MOST_MEMORY = 2 << 30
LONGEST_TEXT = 16 << 20  # characters


def environment(day: str | None) -> Any:
    """Return the Jinja environment. `day` is the date that `strftime_now` gives, in ISO format, or None for today."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the text of the assistant. Only training needs the marks."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 wants a set)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller: Callable[[], str]) -> str:
            return caller()

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    def now(pattern: str) -> str:
        moment = datetime.now() if day is None else datetime.fromisoformat(day)
        return moment.strftime(pattern)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals |= {"raise_exception": refuse, "strftime_now": now}
    return made


def limit_memory() -> None:
    """Limit how much the address space of this process may grow from now on. Does nothing on Windows."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _answer(request: dict[str, Any], compiled: Callable[[], Any], special: dict[str, str]) -> dict[str, Any]:
    texts: list[str | None] = []
    errors: list[str | None] = []
    for messages in request["conversations"]:
        text = error = None
        try:
            options = {**special, "tools": None, "documents": None, **request["options"]}
            text = str(compiled().render(messages=messages, **options))
            if len(text) > LONGEST_TEXT:
                text, error = None, "its text is longer than 16 million characters"
        except Exception as raised:  # a template can raise anything: ZeroDivisionError, RecursionError, MemoryError
            error = " ".join(str(raised).split())[:200] or type(raised).__name__
        texts.append(text)
        errors.append(error)
    return {"texts": texts, "errors": errors}


def main() -> None:
    """Answer requests until stdin ends."""
    first = json.loads(sys.stdin.readline())
    made: Any = None
    missing = None
    try:
        made = environment(first["day"])
    except ImportError as error:
        missing = str(error)
    limit_memory()
    template: Any = None

    def compiled() -> Any:
        nonlocal template
        if template is None:
            template = made.from_string(first["template"])
        return template

    for line in sys.stdin:
        answer = {"missing": missing} if missing else _answer(json.loads(line), compiled, first["special"])
        # json.dumps writes ASCII, so that a lone surrogate in a text cannot end this process.
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
