"""Answers of llama-server, saved and parsed afterwards."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from compact.base.errors import EngineCrashedError
from runtime_bench.engines.stream import NoAnswerError, Saved, completion_of, json_of, post


def event(n: int, ms: float, text: str = "a", **more: Any) -> dict[str, Any]:
    timings = {"prompt_n": 5, "prompt_ms": 40.0, "predicted_n": n, "predicted_ms": ms}
    return {"content": text, "tokens": [1], "stop": False, "timings": timings, **more}


def answer(*events: dict[str, Any], status: str = "200 OK", cut: int | None = None) -> Saved:
    """A streamed answer as the server sends it: chunked, one event a chunk."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = [f"data: {json.dumps(one)}\n\n".encode() for one in events]
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return Saved((head + body)[:cut], 1.0, 0.0)


LAST = event(3, 60.0, "", stop=True, tokens=[])


def test_times_count_from_the_start_of_the_prompt() -> None:
    made = completion_of(answer(event(1, 0.001), event(2, 30.0, "b"), event(3, 60.0, "c"), LAST))
    assert (made.prompt_tokens, made.prompt_s, made.text) == (5, 0.04, "abc")
    assert made.token_s == pytest.approx((0.040001, 0.07, 0.1))


def test_a_token_that_ends_within_a_character_gets_a_time_between_its_neighbours() -> None:
    # The server sends nothing for it: the next event counts two tokens more.
    made = completion_of(answer(event(1, 0.0), event(3, 60.0, "é"), LAST))
    assert made.token_s == pytest.approx((0.04, 0.07, 0.1))


@pytest.mark.parametrize("cut", [20, 150, 400, -5, -10])
def test_an_answer_cut_short_is_no_answer(cut: int) -> None:
    with pytest.raises(NoAnswerError):
        completion_of(answer(event(1, 0.0), event(2, 30.0), LAST, cut=cut))


def test_an_answer_without_its_last_event_is_no_answer() -> None:
    with pytest.raises(NoAnswerError, match="no end"):
        completion_of(answer(event(1, 0.0), event(2, 30.0)))


@pytest.mark.parametrize(
    "odd", [{"content": "x"}, {"timings": None}, {"timings": {"prompt_n": "many"}}, [1], "text", None]
)
def test_an_odd_event_is_the_servers_fault_and_not_the_links(odd: Any) -> None:
    with pytest.raises(EngineCrashedError, match="gave an unexpected answer") as caught:
        completion_of(answer(odd, LAST))
    assert "too old or too new" in str(caught.value.hint)


def test_a_refusal_quotes_the_server() -> None:
    saved = answer(status="400 Bad Request")
    body = b'{"error":{"code":400,"message":"the request exceeds the available context size"}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    with pytest.raises(EngineCrashedError, match="400: the request exceeds the available context size"):
        json_of(Saved(head + body, saved.wall_s, saved.cpu_s))


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Takes connections, answers nothing and closes them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


def test_a_closed_connection_is_no_answer(silent_server: int) -> None:
    with pytest.raises(NoAnswerError):
        json_of(post(silent_server, "/completion", {}, 5.0))


def test_a_port_where_nobody_listens_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(NoAnswerError):
        post(port, "/completion", {}, 5.0)
