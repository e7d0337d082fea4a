"""Renders a chat template: the child of `runtime_bench.prompts`, for a template is a program of whoever made the model.

Reads `{"template", "special", "conversations"}` from stdin and writes `{"texts": [...]}` or `{"error": ...}`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

MOST_MEMORY = 2 << 30
LONGEST_TEXT = 16 << 20  # characters


def render(request: dict[str, Any]) -> list[str]:
    """The text of each conversation, ready for an answer. Raises whatever the template makes Jinja raise."""
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        conversations=request["conversations"],
        chat_template=request["template"],
        add_generation_prompt=True,
        **request["special"],
    )
    if any(len(text) > LONGEST_TEXT for text in texts):
        raise ValueError("its text is longer than 16 million characters")
    return [str(text) for text in texts]


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    try:
        answer: dict[str, Any] = {"texts": render(request)}
    except Exception as error:  # a division by zero, endless recursion, anything
        answer = {"error": " ".join(str(error).split())[:200] or type(error).__name__}
    # Plain ASCII: a lone surrogate in a template must not end this process.
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
