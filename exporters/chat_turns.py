"""The turns of a chat template, found by rendering it: what stands before, between and behind the messages.

A Hugging Face chat template is a Jinja program; other runtimes have template languages of their own. Rendered on probe
conversations, most templates turn out to put fixed text around the messages. `find_turns` takes that text out of the
renderings and holds it against further conversations, so that it is either exact or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Messages = Sequence[dict[str, str]]
Render = Callable[[Messages], str]

# No white space at the ends, which templates trim, and nothing that a template looks for.
_SYSTEM, _USER, _ANSWER, _SECOND = "Qsystem7Z", "Quser7Z", "Qanswer7Z", "Qsecond7Z"

# What marks the turns of well-known families, for people: name -> text found in them.
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
        system: text before and behind the system message at the head; None without a place for it there.
        system_in_last: text behind the system message where it stands in the last user's turn (Mistral); else None.
        head: text before the first user message of a conversation without a system message at the head.
        after_user: between a user message and the answer to it.
        after_answer: between an answer and the next user message (or the system message before that).
        prompt: behind the last user message, where the model goes on.
    """

    system: tuple[str, str] | None
    system_in_last: str | None
    head: str
    after_user: str
    after_answer: str
    prompt: str

    @property
    def family(self) -> str | None:
        """Name of the family of templates, by its marks; None for another."""
        text = "".join((*(self.system or ()), self.head, self.after_user, self.after_answer))
        return next((name for name, mark in _FAMILIES if mark in text), None)

    def expand(self, messages: Messages) -> str:
        """The text of a conversation that ends with a user message."""
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
    """The turns of a template, None where it does more than put fixed text around messages.

    Args:
        render: the template on a conversation, with the prompt for the answer; raises whatever a template raises for a
            conversation that it refuses.
    """
    try:
        pieces = _split(render(_talk(_USER, _ANSWER, _SECOND)), (_USER, _ANSWER, _SECOND))
    except Exception:  # a template is a program of somebody else's and raises what it likes
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
    """The text around `marks`, None where they are not all there once and in this order."""
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
    except Exception:  # such as Gemma's: "System role not supported"
        return None, None
    if (pieces := _split(text, (_SYSTEM, _USER, _ANSWER, _SECOND))) is not None:
        return (pieces[0], pieces[1]), None
    if (pieces := _split(text, (_USER, _ANSWER, _SYSTEM, _SECOND))) is not None:
        return None, pieces[3]
    return None, None


def _holds(turns: Turns, render: Render) -> bool:
    """Whether the turns give what the template gives on conversations that they were not taken from."""
    probes = [
        _talk("Why is it so?"),
        _talk("One", "two", "three", "four", "five"),
        _talk("First line\nand a second", "An answer: {x} <y>", "1 + 1 = 2?"),
    ]
    if turns.system is not None or turns.system_in_last is not None:
        probes += [_talk(*(m["content"] for m in probe), system="Be brief.\nBe kind.") for probe in probes]
    try:
        return all(render(probe) == turns.expand(probe) for probe in probes)
    except Exception:  # as above
        return False
