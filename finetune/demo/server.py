"""The server of the page: Gradio's queue behind three calls, on this machine's loopback address alone."""

import asyncio
import errno
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs import UserError
from configs.extras import require
from configs.files import ending_by_signals
from finetune.demo import answers, limits, page
from finetune.demo.answers import Answer
from finetune.demo.models import Classifier, LanguageModel
from finetune.table import classify_table
from mlm.distributed.world import World

MOST_WAITING = 16
"""Calls in the queue; more are refused."""
MOST_TABLES = 4
"""Classified tables that are kept to be downloaded; then the oldest is removed."""
SECONDS_TO_END = 10
"""Time that the server is given to end."""
ENGINE, TABLE = "/engine", "/table"
"""Paths of Gradio, and of the tables that are sent here and fetched again."""
_PATHS = ("/", f"{ENGINE}/gradio_api/call/", TABLE, f"{TABLE}/")
_ENDING = re.compile(r"(\.[a-z0-9]{1,8}){1,2}$")


class Tables:
    """The tables that are sent to be classified, in a folder for this process alone."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._sources = folder, dict[str, tuple[Path, str]]()

    def add(self, name: str, content: bytes) -> str:
        """Keep a table under a key that nobody guesses, and return that; `name` is the one that its sender knows."""
        key = secrets.token_hex(16)
        ending = _ENDING.search(name.lower())
        path = self._folder / f"{key}{ending[0] if ending else ''}"
        path.write_bytes(content)
        self._sources[key] = path, name
        for old in list(self._sources)[:-MOST_TABLES]:
            self._sources.pop(old)[0].unlink(missing_ok=True)
            self.classified(old).unlink(missing_ok=True)
        return key

    def classified(self, key: str) -> Path:
        """Return the path of the classified table."""
        return self._folder / f"{key}.classified.csv"

    def classify(self, key: str, model: Classifier, world: World) -> Iterator[Answer]:
        """Yield the progress of a table, at last with what is to be said of it."""
        if key not in self._sources:
            raise UserError("the table is no longer here: send it again")
        source, name = self._sources[key]
        try:
            for step in classify_table(model, source, self.classified(key), None, world, "utf-8"):
                said = step.remarks.replace(f" into {self.classified(key)}", "")
                yield {"done": step.done, "total": step.total, "remarks": said}
        except UserError as error:
            raise UserError(str(error).replace(str(source), name)) from error


def serve(application: limits.Guard, listening: socket.socket) -> None:
    """Serve an application until a signal ends it, by a KeyboardInterrupt with its number."""
    with ending_by_signals(), running(application, listening) as thread:  # else temporary files would be left
        thread.join()


@contextmanager
def running(application: limits.Guard, listening: socket.socket) -> Iterator[threading.Thread]:
    """Return a context with the thread that serves an application.

    It is no thread that a signal interrupts: Gradio's tasks would go on for ever if one came while they begin.
    """
    import uvicorn

    settings = uvicorn.Config(application, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(settings)
    own = listening.dup()  # which the server closes, whenever it ends
    thread = threading.Thread(target=server.run, kwargs={"sockets": [own]}, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(SECONDS_TO_END)


def build(model: LanguageModel | Classifier, content: Mapping[str, Any], world: World, tables: Tables) -> limits.Guard:
    """Return the application, whose calls wait in one queue: a model answers one at a time."""
    # Where no event loop runs, Gradio makes one for each of its locks, and closes none.
    return asyncio.run(_build(model, content, world, tables))


async def _build(
    model: LanguageModel | Classifier, content: Mapping[str, Any], world: World, tables: Tables
) -> limits.Guard:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it on import: no report, no check of its version
    import gradio
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse

    shown = page.page(content)
    with gradio.Blocks(analytics_enabled=False) as blocks:
        for call in _calls(model, world, tables):
            gradio.api(call, api_name=call.__name__, concurrency_limit=1, concurrency_id="model")
    blocks.queue(max_size=MOST_WAITING)
    application = FastAPI(openapi_url=None)

    def show() -> HTMLResponse:
        return HTMLResponse(shown)

    async def send(request: Request, name: str) -> PlainTextResponse:
        return PlainTextResponse(tables.add(name, await request.body()))

    def fetch(key: str) -> Response:
        path = tables.classified(key)
        if not re.fullmatch("[0-9a-f]{32}", key) or not path.is_file():
            return PlainTextResponse("the table is no longer here: send it again", 404)
        return FileResponse(path, media_type="text/csv", filename="classified.csv")

    application.add_api_route("/", show)
    application.add_api_route(TABLE, send, methods=["POST"])
    application.add_api_route(TABLE + "/{key}", fetch)
    mounted = gradio.mount_gradio_app(application, blocks, path=ENGINE, show_error=False, ssr_mode=False)
    return limits.Guard(mounted, _PATHS)


def check_gradio() -> None:
    """Raise a UserError if the extra is not installed."""
    require("gradio", extra="demo", purpose="the page (--export does without)")


def _calls(model: LanguageModel | Classifier, world: World, tables: Tables) -> list[Any]:
    """Return the functions that the page may call; a user's mistake is an answer, too."""
    if isinstance(model, LanguageModel):

        def fill_mask(text: str, hidden: list[int]) -> dict[str, Any]:
            return _answer(lambda: answers.fill_mask(model, text, hidden))

        return [fill_mask]

    def classify(texts: list[str]) -> dict[str, Any]:
        return _answer(lambda: answers.classify(model, texts, world))

    def table(key: str) -> Iterator[dict[str, Any]]:
        try:
            yield from map(dict, tables.classify(key, model, world))
        except UserError as error:
            yield {"error": str(error)}

    return [classify, table]


def _answer(ask: Any) -> dict[str, Any]:
    try:
        return dict(ask())
    except UserError as error:
        return {"error": str(error)}


def bound(port: int) -> socket.socket:
    """Return a socket on the loopback address; a UserError if the port is in use, or may not be taken."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((limits.LOOPBACK, port))
        listening.listen()
    except OSError as error:
        listening.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be taken ({error.strerror})"
        raise UserError(f"port {port} {reason}: choose another by --port, or any free one by --port 0") from error
    return listening
