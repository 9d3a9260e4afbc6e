"""The guard of the server refuses what is not the page's own, too large, or too often."""

import asyncio
from typing import Any

import pytest

from finetune.demo.limits import MOST_BYTES, Guard, Message, RateLimit

PATHS = ("/", "/engine/call/", "/table")


def request(path: str = "/", method: str = "GET", **headers: str) -> dict[str, Any]:
    given = {"host": "127.0.0.1:7860", **headers}
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    return {"type": "http", "path": path, "method": method, "headers": pairs}


def guard() -> Guard:
    async def page(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})

    return Guard(page, PATHS)


def test_calls_beyond_the_rate_are_refused_until_time_has_passed() -> None:
    rate = RateLimit(calls=3, seconds=10)
    assert [rate.allows(now) for now in (0, 1, 2, 3, 9.9)] == [True, True, True, False, False]
    assert [rate.allows(now) for now in (10, 10.5, 11, 11.5, 30)] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (request(), None),
        (request(host="localhost:7860"), None),
        (request(host="[::1]:7860"), 403),
        (request(host="attacker.example:7860"), 403),
        (request(host=""), 403),
        (request(host="[::"), 403),
        (request(host="me@127.0.0.1"), 403),
        (request(host="LocalHost:7860", origin="http://localhost:7860"), None),
        (request(host="localhost:7860", origin="http://LOCALHOST:7860"), None),
        (request(origin="http://127.0.0.1:7860"), None),
        (request(origin="http://attacker.example"), 403),
        (request(origin="null"), 403),
        (request("/engine/"), 404),
        (request("/engine"), 404),
        (request("/engine/call/x"), None),
        (request("/tables"), 404),
        (request("/config"), 404),
        (request("/table", "POST"), 411),
        (request("/table", "POST", content_length=str(MOST_BYTES)), None),
        (request("/table", "POST", content_length=str(MOST_BYTES + 1)), 413),
        (request("/table", "POST", content_length="-5"), 411),
    ],
)
def test_a_request_is_refused_by_its_status(given: dict[str, Any], status: int | None) -> None:
    refused = guard().refusal(given, 0.0)
    assert (refused and refused[0]) == status
    assert refused is None or "\n" not in refused[1]


def test_a_web_socket_is_closed_before_it_opens() -> None:
    sent = list[Message]()

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    asyncio.run(guard()({**request(), "type": "websocket"}, receive, send))
    assert sent == [{"type": "websocket.close"}]


def test_a_refusal_is_one_line_of_text_and_the_rate_counts_calls_alone() -> None:
    sent = list[Message]()

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("a refused request is not read")

    guarded = guard()

    def statuses(*requests: dict[str, Any]) -> list[int]:
        sent.clear()
        for given in requests:
            asyncio.run(guarded(given, receive, send))
        return [message["status"] for message in sent if "status" in message]

    calls = [request("/engine/call/x", "POST", content_length="2")] * 61
    assert statuses(*[request()] * 100) == [200] * 100
    assert statuses(*calls) == [200] * 60 + [429]
    assert b"try again" in sent[-1]["body"]
    assert statuses(request("/engine/call/x")) == [200]  # an answer is still fetched
