"""A small evaluator of Go's text/template: as much of it as the Modelfile's templates use, and no more.

Written from the package's documentation: actions in `{{ }}`, trim markers, `if`/`else if`/`else`/`end`, `range` with
two variables, variables, fields of the dot and of `$`, string constants, and the functions eq, and, not, len and slice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\(|\)|:=|,|[^\s(),]+')

Node = tuple[str, Any]


def render(template: str, *, system: str, messages: list[dict[str, str]]) -> str:
    """What the template gives for a conversation, as Ollama sets its variables."""
    data = {"System": system, "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    nodes = list(_tokens(template))
    tree, rest = _parse(nodes)
    assert not rest, rest
    return _run(tree, data, {"$": data})


def _tokens(template: str) -> Iterator[Node]:
    at, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        yield "text", text.rstrip() if match[1] else text
        yield "action", _WORD.findall(match[2])
        at, trim = match.end(), bool(match[3])
    yield "text", template[at:].lstrip() if trim else template[at:]


def _parse(nodes: list[Node]) -> tuple[list[Node], list[Node]]:
    """The nodes up to an `else` or `end`, and what follows from there."""
    tree: list[Node] = []
    while nodes:
        kind, value = nodes[0]
        if kind == "action" and value[0] in ("else", "end"):
            return tree, nodes
        nodes = nodes[1:]
        if kind == "action" and value[0] in ("if", "range"):
            node, nodes = _branch(value, nodes)
            tree.append(node)
        else:
            tree.append((kind, value))
    return tree, nodes


def _branch(head: list[str], nodes: list[Node]) -> tuple[Node, list[Node]]:
    body, nodes = _parse(nodes)
    word, nodes = nodes[0][1], nodes[1:]
    other: list[Node] = []
    if word[:2] == ["else", "if"]:
        node, nodes = _branch(word[1:], nodes)
        other = [node]
    elif word == ["else"]:
        other, nodes = _parse(nodes)
        assert nodes[0][1] == ["end"]
        nodes = nodes[1:]
    return (head[0], (head[1:], body, other)), nodes


def _run(tree: list[Node], dot: Any, names: dict[str, Any]) -> str:
    out = []
    for kind, value in tree:
        if kind == "text":
            out.append(value)
        elif kind == "action" and ":=" in value:
            names[value[0]] = _value(value[2:], dot, names)
        elif kind == "action":
            out.append(str(_value(value, dot, names)))
        elif kind == "if":
            condition, body, other = value
            out.append(_run(body if _value(condition, dot, names) else other, dot, dict(names)))
        else:
            (index, _, item, _, *source), body, _ = value
            for number, element in enumerate(_value(source, dot, names)):
                out.append(_run(body, element, {**names, index: number, item: element}))
    return "".join(out)


def _value(words: list[str], dot: Any, names: dict[str, Any]) -> Any:
    """A pipeline without pipes: one operand, or a function and its operands."""
    operands, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word == "(":
            depth, inner = 1, []
            while depth:
                inner.append(rest.pop(0))
                depth += {"(": 1, ")": -1}.get(inner[-1], 0)
            operands.append(_value(inner[:-1], dot, names))
        elif word.startswith('"'):
            operands.append(word[1:-1])
        elif word.isdigit():
            operands.append(int(word))
        elif word.startswith("."):
            operands.append(dot[word[1:]])
        elif word.startswith("$."):
            operands.append(names["$"][word[2:]])
        elif word.startswith("$"):
            operands.append(names[word])
        else:
            operands.append(_FUNCTIONS[word])
    return operands[0](*operands[1:]) if callable(operands[0]) else operands[0]


_FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "and": lambda a, b: b if a else a,
    "not": lambda a: not a,
    "len": len,
    "slice": lambda values, first: values[first:],
}
