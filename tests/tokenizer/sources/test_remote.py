import functools
import gzip
import hashlib
import http.server
import random
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from configs import UserError
from tests.tokenizer.samples import FORMATS, MIXED, write
from tokenizer.sources import Files, remote
from tokenizer.sources.readers import TableConfig, read_table

pytest.importorskip("s3fs", reason="the driver of s3://")
moto = pytest.importorskip("moto.server", reason="a server of S3")

CHANCE = random.Random(0)
LINES = [f"{number} {CHANCE.randbytes(30).hex()}" for number in range(20_000)]
LARGE = "".join(f"{line}\n" for line in LINES).encode()


class Proxy(socketserver.ThreadingTCPServer):
    """Passes connections on, and breaks each after `most` bytes of answers; with `most` = 0 it takes none."""

    daemon_threads = True
    most = sys.maxsize
    broken = 0
    passed = 0

    def __init__(self, target: int) -> None:
        self.target = target
        super().__init__(("127.0.0.1", 0), Connection)


class Connection(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as upstream:
            threading.Thread(target=self.send_on, args=(upstream,), daemon=True).start()
            left = self.server.most
            while left and (block := upstream.recv(min(left, 1 << 16))):
                try:
                    self.request.sendall(block)
                except OSError:
                    return
                left -= len(block)
                self.server.passed += len(block)
            self.server.broken += not left
            upstream.shutdown(socket.SHUT_RDWR)
        self.request.shutdown(socket.SHUT_RDWR)

    def send_on(self, upstream: socket.socket) -> None:
        try:
            while block := self.request.recv(1 << 16):
                upstream.sendall(block)
        except OSError:
            return


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A server of S3 behind a proxy, and an environment that knows no other server and no other credentials."""
    with pytest.MonkeyPatch.context() as patch:
        nowhere = str(tmp_path_factory.mktemp("home") / "none")
        server = moto.ThreadedMotoServer("127.0.0.1", 0)
        server.start()
        proxy = Proxy(server.get_host_and_port()[1])
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "anyone",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": nowhere,
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        with serving(proxy):
            store = fsspec.filesystem("s3")
            store.mkdir("bucket")
            store.pipe({"bucket/a.txt": LARGE, "bucket/b.txt.gz": gzip.compress(LARGE), "bucket/deep/c.txt": b"c\n"})
            yield proxy
            store.clear_instance_cache()
        server.stop()


def texts(*paths: str) -> list[str]:
    return [document.text.rstrip("\n") for document in Files(paths=paths).documents()]


def test_files_of_s3_are_read_by_name_and_by_pattern(s3: Proxy, tmp_path: Path) -> None:
    assert texts("s3://bucket/b.txt.gz") == LINES
    assert texts("s3://bucket/deep/c.txt", "s3://bucket/**/*.txt", str(write(tmp_path, "d.txt", "d\n"))) == [
        "c",
        *LINES,
        "d",
    ]
