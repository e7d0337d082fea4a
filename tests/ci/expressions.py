"""Enough of GitHub's expressions for our workflows: paths, literals, operators, and a few functions.

What is not known here raises, so that a workflow that grows more of the language fails its test instead of passing it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|(&&|\|\||==|!=|!|\(|\)|,)|([A-Za-z_][\w.-]*)|(\d+(?:\.\d+)?))")
_INSERTED = re.compile(r"\$\{\{((?:(?!\}\}).)*)\}\}", re.DOTALL)


def fill(text: Any, context: Mapping[str, Any]) -> Any:
    """A value of a workflow with its expressions replaced; one that is a single expression keeps its kind."""
    if not isinstance(text, str):
        return text
    whole = _INSERTED.fullmatch(text.strip())
    if whole is not None:
        return evaluate(whole.group(1), context)
    return _INSERTED.sub(lambda found: as_text(evaluate(found.group(1), context)), text)


def as_text(value: Any) -> str:
    """A value as GitHub writes it into a text."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_true(condition: str | None, context: Mapping[str, Any]) -> bool:
    """An `if:`; without a status function it also asks that nothing before it failed."""
    failed = bool(context["failed"])
    if condition is None:
        return not failed
    value = bool(fill(condition, context) if "${{" in condition else evaluate(condition, context))
    asks = re.search(r"\b(always|cancelled|failure|success)\(\)", condition)
    return value and (asks is not None or not failed)


def evaluate(source: str, context: Mapping[str, Any]) -> Any:
    """The value of one expression. Raises ValueError for what is beyond this reader."""
    tokens: list[str] = []
    rest = source.strip()
    while rest:
        found = _TOKEN.match(rest)
        if found is None:
            raise ValueError(f"cannot read {rest!r} in {source!r}")
        tokens.append(found.group().strip())
        rest = rest[found.end() :].strip()
    parser = _Parser(tokens, context)
    value = parser.either()
    if parser.tokens:
        raise ValueError(f"{parser.tokens} is left of {source!r}")
    return value


class _Parser:
    def __init__(self, tokens: list[str], context: Mapping[str, Any]) -> None:
        self.tokens = tokens
        self._context = context

    def _take(self, *wanted: str) -> str | None:
        return self.tokens.pop(0) if self.tokens and self.tokens[0] in wanted else None

    def either(self) -> Any:
        value = self._both()
        while self._take("||"):
            other = self._both()
            value = value or other
        return value

    def _both(self) -> Any:
        value = self._compared()
        while self._take("&&"):
            other = self._compared()
            value = other if value else value
        return value

    def _compared(self) -> Any:
        value = self._one()
        while (sign := self._take("==", "!=")) is not None:
            equal = as_text(value) == as_text(self._one())
            value = equal if sign == "==" else not equal
        return value

    def _one(self) -> Any:
        if self._take("!"):
            return not self._one()
        if self._take("("):
            value = self.either()
            if not self._take(")"):
                raise ValueError("a ) is missing")
            return value
        token = self.tokens.pop(0)
        if token.startswith("'"):
            return token[1:-1].replace("''", "'")
        if token[0].isdigit():
            return float(token)
        if token in ("true", "false"):
            return token == "true"
        if self._take("("):
            arguments = []
            while not self._take(")"):
                arguments.append(self.either())
                self._take(",")
            return self._call(token, arguments)
        return self._look_up(token)

    def _call(self, name: str, arguments: list[Any]) -> Any:
        failed = bool(self._context["failed"])
        match name, arguments:
            case "fromJSON", [text]:
                return json.loads(text)
            case "startsWith", [text, start]:
                return as_text(text).startswith(start)
            case "hashFiles", [*_]:
                return "0" * 64
            case "cancelled", []:
                return False
            case "always", []:
                return True
            case "success", []:
                return not failed
            case "failure", []:
                return failed
        raise ValueError(f"no such function here: {name}")

    def _look_up(self, path: str) -> Any:
        value: Any = self._context
        first, *rest = path.split(".")
        if first not in value:
            raise ValueError(f"no such context here: {first}")
        value = value[first]
        for name in rest:
            value = value.get(name, "") if isinstance(value, Mapping) else ""
        return value
