"""The guard of the server: only this machine's browsers, only the page's own paths, not too much and not too often."""

import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = "127.0.0.1"
_HOST = re.compile(rf"(?:{re.escape(LOOPBACK)}|localhost)(?::[0-9]*)?")
MOST_BYTES = 10_000_000
"""Size of a table."""
MOST_CALLS, SECONDS = 60, 10.0
"""Calls of all browsers together in a span of time."""


class RateLimit:
    """At most `calls` in any `seconds`."""

    def __init__(self, calls: int = MOST_CALLS, seconds: float = SECONDS) -> None:
        self._times, self._calls, self._seconds = deque[float](), calls, seconds

    def allows(self, now: float) -> bool:
        """Return whether a call now, on a clock that only rises, is within the limit; if so, it counts."""
        while self._times and self._times[0] <= now - self._seconds:
            self._times.popleft()
        if len(self._times) >= self._calls:
            return False
        self._times.append(now)
        return True


class Guard:
    """An ASGI application that refuses requests by one line of text, and passes the others on."""

    def __init__(self, application: Application, paths: tuple[str, ...]) -> None:
        """Let the `paths` through: the page's own, and all those that begin with one that ends in a slash."""
        self._application, self._paths, self._rate = application, paths, RateLimit()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] not in ("http", "lifespan"):  # a web socket, which the page does not use
            await send({"type": "websocket.close"})
            return
        refused = self.refusal(scope, time.monotonic()) if scope["type"] == "http" else None
        if refused is None:
            await self._application(scope, receive, send)
            return
        status, line = refused
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": line.encode()})

    def refusal(self, scope: Message, now: float) -> tuple[int, str] | None:
        """Return the status and the line that refuse a request, if any."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "").lower()
        if not _HOST.fullmatch(host):  # another site's name may have been bound to this address
            return 403, f"open the page by http://{LOOPBACK}, not by another name"
        if headers.get("origin", f"http://{host}").lower() != f"http://{host}":
            return 403, "another site may not use this page's model"
        path: str = scope["path"]
        if not any(
            path == known or (known.endswith("/") and known != "/" and path.startswith(known)) for known in self._paths
        ):
            return 404, "there is no such page here"
        if scope["method"] in ("GET", "HEAD"):
            return None
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "the request does not tell its length"
        if int(length) > MOST_BYTES:
            return 413, f"{int(length):,} bytes are over this page's {MOST_BYTES:,}: send a shorter table"
        if not self._rate.allows(now):
            return 429, f"over {MOST_CALLS} requests in {SECONDS:.0f} seconds: try again in a moment"
        return None
