"""The turns of a chat template: the fixed text before, between and after the messages.

A Hugging Face chat template is a Jinja program. Other runtimes use other template languages. Most templates only put
fixed text around the messages. `find_turns` renders probe conversations, extracts that text, and checks it against
more conversations. The result is either exact or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Messages = Sequence[dict[str, str]]
Render = Callable[[Messages], str]

# Templates trim white space and may search for words, so the marks have neither.
_SYSTEM, _USER, _ANSWER, _SECOND = "Qsystem7Z", "Quser7Z", "Qanswer7Z", "Qsecond7Z"

# Names of well-known template families, for display: (name, text that identifies it).
_FAMILIES = (
    ("llama3", "<|start_header_id|>"),
    ("chatml", "<|im_start|>"),
    ("gemma", "<start_of_turn>"),
    ("llama2", "<<SYS>>"),
    ("mistral", "[INST]"),
    ("phi3", "<|end|>"),
    ("zephyr", "<|user|>"),
)


@dataclass(frozen=True)
class Turns:
    """The fixed text of a template whose conversations are [system] (user assistant)* user.

    Attributes:
        system: text before and after a system message at the start; None if the template puts none there.
        system_in_last: text after a system message that is part of the last user turn (Mistral); otherwise None.
        head: text before the first user message if no system message precedes it.
        after_user: text between a user message and the answer.
        after_answer: text between an answer and the next user message (or the system message before it).
        prompt: text after the last user message, where the model continues.
    """

    system: tuple[str, str] | None
    system_in_last: str | None
    head: str
    after_user: str
    after_answer: str
    prompt: str

    @property
    def family(self) -> str | None:
        """Name of the template family; None if it is not one of `_FAMILIES`."""
        text = "".join((*(self.system or ()), self.head, self.after_user, self.after_answer))
        return next((name for name, mark in _FAMILIES if mark in text), None)

    def expand(self, messages: Messages) -> str:
        """Return the text of a conversation that ends with a user message."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = [message["content"] for message in messages if message["role"] != "system"]
        text = self.head
        if system is not None and self.system is not None:
            text = self.system[0] + system + self.system[1]
        for index, content in enumerate(turns):
            last = index == len(turns) - 1
            if last and system is not None and self.system_in_last is not None:
                text += system + self.system_in_last
            text += content + (self.prompt if last else self.after_answer if index % 2 else self.after_user)
        return text


def find_turns(render: Render) -> Turns | None:
    """Find the turns of a template; None if it does more than put fixed text around messages.

    Args:
        render: renders a conversation with the template, including the prompt for the answer. It may raise any
            exception for a conversation that the template refuses.
    """
    try:
        pieces = _split(render(_talk(_USER, _ANSWER, _SECOND)), (_USER, _ANSWER, _SECOND))
    except Exception:  # a template is third-party code and may raise anything
        return None
    if pieces is None:
        return None
    head, after_user, after_answer, prompt = pieces
    system, in_last = _system(render)
    turns = Turns(system, in_last, head, after_user, after_answer, prompt)
    return turns if _holds(turns, render) else None


def _talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return roles if system is None else [{"role": "system", "content": system}, *roles]


def _split(text: str, marks: Sequence[str]) -> list[str] | None:
    """Return the text around `marks`; None unless each occurs exactly once, in this order."""
    if any(text.count(mark) != 1 for mark in marks):
        return None
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        pieces.append(before)
    return [*pieces, text]


def _system(render: Render) -> tuple[tuple[str, str] | None, str | None]:
    try:
        text = render(_talk(_USER, _ANSWER, _SECOND, system=_SYSTEM))
    except Exception:  # for example Gemma's "System role not supported"
        return None, None
    if (pieces := _split(text, (_SYSTEM, _USER, _ANSWER, _SECOND))) is not None:
        return (pieces[0], pieces[1]), None
    if (pieces := _split(text, (_USER, _ANSWER, _SYSTEM, _SECOND))) is not None:
        return None, pieces[3]
    return None, None


def _holds(turns: Turns, render: Render) -> bool:
    """Return whether the turns match the template on conversations that were not used to find them."""
    probes = [
        _talk("Why is it so?"),
        _talk("One", "two", "three", "four", "five"),
        _talk("First line\nand a second", "An answer: {x} <y>", "1 + 1 = 2?"),
    ]
    if turns.system is not None or turns.system_in_last is not None:
        probes += [_talk(*(m["content"] for m in probe), system="Be brief.\nBe kind.") for probe in probes]
    try:
        return all(render(probe) == turns.expand(probe) for probe in probes)
    except Exception:  # the template refuses a conversation
        return False
