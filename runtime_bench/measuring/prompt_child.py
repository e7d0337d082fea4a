"""Child process of `runtime_bench.measuring.prompts` that renders a chat template.

A chat template is a program by the model's author.

Reads `{"template", "special", "conversations"}` from stdin and writes `{"texts": [...]}` or `{"error": ...}`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Self

MOST_MEMORY = 2 << 30
LONGEST_TEXT = 16 << 20  # characters


class _Day(datetime):
    """A clock that always shows the same time."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls(2025, 1, 1, tzinfo=tz)


def render(request: dict[str, Any]) -> list[str]:
    """Return the text of each conversation up to the point where the answer begins. Raises the errors of Jinja."""
    from transformers.utils import chat_template_utils

    # A template that prints the date must give the same prompt every day. A function passed by name is not called.
    chat_template_utils.datetime = _Day
    _limit_memory()
    texts, _ = chat_template_utils.render_jinja_template(
        conversations=request["conversations"],
        chat_template=request["template"],
        add_generation_prompt=True,
        date_string=_Day.now().strftime("%d %b %Y"),
        **request["special"],
    )
    if any(len(text) > LONGEST_TEXT for text in texts):
        raise ValueError("its text is longer than 16 million characters")
    return [str(text) for text in texts]


def _limit_memory() -> None:
    """Limit the growth of the address space from here on, where the system can. The libraries are already loaded."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MOST_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"texts": render(request)}
    except ImportError as error:
        answer = {"missing": str(error)}
    except Exception as error:  # a division by zero, endless recursion, anything
        answer = {"error": " ".join(str(error).split())[:200] or type(error).__name__}
    # Plain ASCII: a lone surrogate in a template must not end this process.
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
