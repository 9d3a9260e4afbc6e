"""The part of the Hugging Face hub's interface that serves one small data set from this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "a" * 40


def _identity(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving(name: str, files: Mapping[str, bytes], newest: str = COMMIT) -> Iterator[str]:
    """Serve `files` as the data set `name` at COMMIT, beside which there may be a newer one; return the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            if path in (f"api/datasets/{name}", f"api/datasets/{name}/revision/{COMMIT}"):
                siblings = [{"rfilename": file} for file in files]
                sha = COMMIT if path.endswith(COMMIT) else newest
                self.answer({"id": name, "sha": sha, "private": False, "tags": [], "siblings": siblings})
            elif path.startswith(f"api/datasets/{name}/tree/{COMMIT}"):
                self.answer(
                    [
                        {"type": "file", "path": f, "size": len(content), "oid": _identity(content)}
                        for f, content in files.items()
                    ]
                )
            elif path.removeprefix(f"datasets/{name}/resolve/{COMMIT}/") in files:
                self.send_file(files[path.removeprefix(f"datasets/{name}/resolve/{COMMIT}/")])
            else:
                self.send(b"{}", 404, {"X-Error-Code": "EntryNotFound" if "/resolve/" in path else "RepoNotFound"})

        do_HEAD = do_GET

        def answer(self, value: object) -> None:
            self.send(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

        def send_file(self, content: bytes) -> None:
            headers = {"ETag": f'"{_identity(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            wanted = self.headers.get("Range")
            if wanted is None:
                self.send(content, 200, headers)
                return
            first, last = wanted.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            self.send(part, 206, headers)

        def send(self, body: bytes, code: int, headers: Mapping[str, str]) -> None:
            self.send_response(code)
            for header, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
