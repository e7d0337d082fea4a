"""A completion over HTTP. It is saved as it arrives and parsed afterwards.

While the engine measures, this process only sleeps and saves bytes. The times in the answer were measured on the
device, so neither the link nor a delay in this process affects them.
"""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any, cast

from compact.base.errors import EngineCrashedError

_PAUSE = 0.02  # seconds between two reads of the socket; its buffer can store thousands of tokens
_CONNECT_SECONDS = 10.0
_CHUNK = 1 << 20


OLD_HINT = "this llama-server may be too old or too new; compact-edge engine build makes one that fits"


def unexpected(what: str) -> EngineCrashedError:
    """Return the error for a complete answer that this client does not understand."""
    return EngineCrashedError(f"llama-server gave an unexpected answer: {what}", OLD_HINT)


class NoAnswerError(Exception):
    """Raised when the connection gives no complete answer. The caller finds out whether engine or link failed."""


@dataclass(frozen=True)
class Saved:
    """One unparsed answer.

    Attributes:
        content: status line, headers and body.
        wall_s: seconds from the request to the end of the answer, by the clock of this machine.
        cpu_s: processor time that this process used during the request.
    """

    content: bytes
    wall_s: float
    cpu_s: float


def post(port: int, path: str, body: Mapping[str, Any], timeout: float) -> Saved:
    """Send JSON to a port of the loopback and save the answer until the server closes the connection.

    Raises NoAnswerError.
    """
    content = json.dumps(body).encode("utf-8")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    begin, used = time.monotonic(), time.process_time()
    parts: list[bytes] = []
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_SECONDS) as connection:
            connection.sendall(head.encode("ascii") + content)
            connection.settimeout(timeout)
            while part := connection.recv(_CHUNK):
                parts.append(part)
                if time.monotonic() - begin > timeout:
                    raise NoAnswerError(f"the answer did not end within {timeout:.0f} s")
                time.sleep(_PAUSE)
    except OSError as error:
        raise NoAnswerError(str(error) or type(error).__name__) from error
    return Saved(b"".join(parts), time.monotonic() - begin, time.process_time() - used)


class _Bytes:
    """The part of a socket that HTTPResponse uses."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, mode: str) -> io.BytesIO:
        del mode
        return io.BytesIO(self._content)


def body_of(saved: Saved) -> bytes:
    """Return the body of an answer.

    Raises:
        NoAnswerError: the answer is incomplete.
        EngineCrashedError: the server refused the request; its message is quoted.
    """
    response = HTTPResponse(cast("socket.socket", _Bytes(saved.content)))
    try:
        response.begin()
        body = response.read()
    except (HTTPException, OSError, ValueError) as error:
        raise NoAnswerError(f"the answer is incomplete ({type(error).__name__})") from error
    if response.status != 200:
        raise EngineCrashedError(f"llama-server answered {response.status}: {_message(body)}")
    return body


def json_of(saved: Saved) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises the errors of `body_of`."""
    try:
        value = json.loads(body_of(saved))
    except ValueError as error:
        raise unexpected("no JSON") from error
    if not isinstance(value, dict):
        raise unexpected("no JSON object")
    return value


@dataclass(frozen=True)
class Completion:
    """A streamed completion.

    Attributes:
        prompt_tokens: tokens that were processed.
        prompt_s: seconds for them.
        token_s: seconds from the start of the prompt to each token.
        text: text of the tokens.
    """

    prompt_tokens: int
    prompt_s: float
    token_s: tuple[float, ...]
    text: str


def completion_of(saved: Saved) -> Completion:
    """Parse the server-sent events of `/completion` with `timings_per_token`.

    The server sends nothing for a token that ends within a character. The time of such a token is interpolated.

    Raises the errors of `body_of`.
    """
    seen: dict[int, float] = {}
    texts: list[str] = []
    prompt_tokens, prompt_ms, ended = 0, 0.0, False
    for line in body_of(saved).split(b"\n"):
        if not line.startswith(b"data:"):
            continue
        try:
            event = json.loads(line[5:])
            if "error" in event:
                raise EngineCrashedError(f"llama-server: {str(event['error'].get('message'))[:300]}")
            texts.append(str(event.get("content", "")))
            timings = event["timings"]
            prompt_tokens, prompt_ms = int(timings["prompt_n"]), float(timings["prompt_ms"])
            seen.setdefault(int(timings["predicted_n"]), float(timings["predicted_ms"]))
            ended = ended or bool(event.get("stop")) or "tokens" not in event
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise unexpected("an event lacks a field") from error
    if not ended or not prompt_tokens:
        raise NoAnswerError("the answer has no end")
    seen.pop(0, None)
    times = [(prompt_ms + ms) / 1e3 for ms in _filled(seen)]
    return Completion(prompt_tokens, prompt_ms / 1e3, tuple(times), "".join(texts))


def _filled(seen: Mapping[int, float]) -> list[float]:
    """Times of all tokens from the first to the last; missing times are interpolated linearly."""
    numbers = sorted(seen)
    result: list[float] = []
    before, before_ms = 0, 0.0
    for number in numbers:
        step = (seen[number] - before_ms) / (number - before)
        result.extend(before_ms + step * index for index in range(1, number - before))
        result.append(seen[number])
        before, before_ms = number, seen[number]
    return result


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace").strip() or "no reason"
