"""Renders chat templates in a child process with limits of time and memory.

A chat template is a program that the author of the model wrote. It may loop forever or fill the memory.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from compact.base.child_environment import module_environment
from compact.base.errors import DamagedFileError, DataError, ToolUnavailableError
from compact.vocabulary.chat_templates import DEFAULT, place_of, read_chat_templates
from compact.vocabulary.loading import load_tokenizer, token_text, tokenizer_settings

SECONDS = 60.0  # for one request; rendering takes milliseconds
Messages = Sequence[Mapping[str, Any]]
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
CONVERSATIONS: tuple[Messages, ...] = (
    QUESTION,
    [
        *QUESTION,
        {"role": "assistant", "content": "It scatters blue light most.\n\nAsk on!"},
        {"role": "user", "content": 'And "sunsets" <red>?'},
    ],
)
# A template is usable if it renders one of these. Some templates need a system message, and some take lists of parts.
# Those of translation models also need the languages.
_PART = {"type": "text", "text": "Why?", "source_lang_code": "en", "target_lang_code": "de"}
_PROBES: tuple[Messages, ...] = (
    *CONVERSATIONS,
    [{"role": "system", "content": "Be brief."}, *QUESTION],
    [{"role": "user", "content": [_PART]}],
)
_HINT = "correct the template, or remove it"


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation, or the error with which the template refused it.

    Attributes:
        text: None if the template raised an error.
        error: None if there is a text.
    """

    text: str | None
    error: str | None


class ChatRenderer:
    """A child process that renders one template. A context manager; not thread-safe."""

    def __init__(
        self,
        template: str,
        special: Mapping[str, str],
        subject: str,
        *,
        day: str | None = None,
        seconds: float = SECONDS,
        hint: str = _HINT,
    ) -> None:
        """Start the child.

        Args:
            template: Jinja text.
            special: variables of the template: `bos_token`, `eos_token`, ...
            subject: place of the template and what it is, for messages (`FILE: the chat template`).
            day: date of `strftime_now` in ISO format; None for today.
            seconds: limit for one request.
            hint: next step for the user if rendering fails.
        """
        self._subject, self._seconds, self._hint = subject, seconds, hint
        # -P keeps the working directory off the child's module path, so that no file there can be imported.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "compact.vocabulary.chat_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=module_environment(),
        )
        self._head: dict[str, Any] | None = {"template": template, "special": dict(special), "day": day}

    def render(self, conversations: Sequence[Messages], **options: Any) -> list[Rendered]:
        """Render conversations.

        Args:
            conversations: each a list of `{"role": ..., "content": ...}`.
            options: more variables of the template, such as `add_generation_prompt`.

        Raises:
            DataError: rendering takes too long, or the child process crashes.
            ToolUnavailableError: jinja2 is not installed.
        """
        request = {"conversations": [list(messages) for messages in conversations], "options": options}
        lines = [request] if self._head is None else [self._head, request]
        self._head = None
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._seconds, stop)
        timer.start()
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("".join(json.dumps(line) + "\n" for line in lines).encode("ascii"))
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            late_text = f"takes longer than {self._seconds:.0f} s to render"
            how = late_text if late.is_set() else "crashes the process that renders it"
            raise DataError(f"{self._subject} {how}", self._hint) from error
        finally:
            timer.cancel()
        if "missing" in answer:
            raise ToolUnavailableError(
                f"chat templates cannot be rendered: {answer['missing']}",
                "install the extra: pip install 'compact-edge[prune]'",
            )
        return [Rendered(text, error) for text, error in zip(answer["texts"], answer["errors"], strict=True)]

    def close(self) -> None:
        """End the child and reap it. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def render_chats(
    template: str, special: Mapping[str, str], conversations: Sequence[Messages], place: str, **options: Any
) -> tuple[Rendered, ...]:
    """Render conversations in a new child process. Equal calls render once.

    Args:
        template: Jinja text.
        special: variables of the template: `bos_token`, `eos_token`, ...
        conversations: as in `ChatRenderer.render`.
        place: file of the template, for messages. It is not part of the cache key.
        options: more variables of the template.

    Raises:
        DataError, ToolUnavailableError: as `ChatRenderer.render`.
    """
    request = json.dumps([list(map(list, conversations)), options])
    try:
        return _rendered(template, tuple(sorted(special.items())), request)
    except DataError as error:
        raise DataError(f"{place}: {error.message}", error.hint) from error


@lru_cache(maxsize=32)
def _rendered(template: str, special: tuple[tuple[str, str], ...], request: str) -> tuple[Rendered, ...]:
    conversations, options = json.loads(request)
    with ChatRenderer(template, dict(special), "the chat template") as renderer:
        return tuple(renderer.render(conversations, **options))


def check_chat_templates(directory: Path) -> None:
    """Check before any expensive work that the chat templates of a checkpoint can be rendered.

    A template may refuse some conversations. It must render at least one of the usual kinds.

    Raises:
        DamagedFileError: a template does not parse, or it renders no conversation.
        DataError: rendering takes too long.
    """
    for name, template in read_chat_templates(directory).items():
        place = place_of(directory, name)
        found = probe(directory, template, place)
        if all(rendered.text is None for rendered in found):
            raise DamagedFileError(
                f"{place}: the chat template renders none of the usual conversations ({found[0].error})", _HINT
            )


def probe(directory: Path, template: str, place: str, tokenizer: Any = None) -> tuple[Rendered, ...]:
    """Render conversations of the usual kinds with a template of a checkpoint. `CONVERSATIONS` come first.

    The special tokens are those of `tokenizer`, if it is given, and otherwise those that the settings name.
    """
    special = _special(directory) if tokenizer is None else special_of(tokenizer)
    found = render_chats(template, special, _PROBES, place, add_generation_prompt=True)
    if found[0].text is None and tokenizer is None:
        # The tokenizer's class may define more tokens. Loading it takes a while.
        found = render_chats(
            template, special_of(load_tokenizer(directory)), _PROBES, place, add_generation_prompt=True
        )
    return found


def special_of(tokenizer: Any) -> dict[str, str]:
    """Return the variables that `apply_chat_template` passes to a template."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def _special(directory: Path) -> dict[str, str]:
    """Return the special tokens that the settings of the tokenizer name."""
    named = {key: token_text(value) for key, value in tokenizer_settings(directory).items() if key.endswith("_token")}
    return {key: text for key, text in named.items() if text is not None}


def template_of(tokenizer: Any) -> str | None:
    """Return the chat template that Transformers uses without a name, or None."""
    found = getattr(tokenizer, "chat_template", None)
    template: str | None = found.get(DEFAULT) if isinstance(found, Mapping) else found
    return template or None


@contextlib.contextmanager
def renderer_of(tokenizer: Any) -> Iterator[ChatRenderer | None]:
    """Open a renderer for the chat template of a tokenizer of Transformers. It is None if there is no template."""
    template = template_of(tokenizer)
    if template is None:
        yield None
        return
    with ChatRenderer(template, special_of(tokenizer), f"{tokenizer.name_or_path}: the chat template") as renderer:
        yield renderer
