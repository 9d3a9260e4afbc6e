import functools
import gzip
import http.server
import itertools
import logging
import os
import random
import re
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest

from configs import UserError
from tests.tokenizer.samples import FORMATS, write
from tokenizer.cache import learn_from
from tokenizer.cleaning import TextConfig
from tokenizer.shards.build import BuildOptions, build
from tokenizer.shards.writer import ShardWriter
from tokenizer.sources import Files, remote
from tokenizer.sources.readers import TableConfig, read_table
from tokenizer.vocabulary import VocabularyConfig

pytest.importorskip("s3fs", reason="the driver of s3://")
moto = pytest.importorskip("moto.server", reason="a server of S3")

CHANCE = random.Random(0)
LINES = [f"{number} {CHANCE.randbytes(30).hex()}" for number in range(20_000)]
LARGE = "".join(f"{line}\n" for line in LINES).encode()


class Proxy(socketserver.ThreadingTCPServer):
    """Passes connections on, and breaks `times` of them after `most` bytes of answers."""

    daemon_threads = True
    most = sys.maxsize
    times = sys.maxsize
    broken = 0
    passed = 0

    def __init__(self, target: int) -> None:
        self.target = target
        super().__init__(("127.0.0.1", 0), Connection)
        self.http = f"http://127.0.0.1:{self.server_address[1]}/bucket"


class Connection(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as upstream:
            threading.Thread(target=self.send_on, args=(upstream,), daemon=True).start()
            left = self.server.most if self.server.broken < self.server.times else sys.maxsize
            while left and (block := upstream.recv(min(left, 1 << 16))):
                try:
                    self.request.sendall(block)
                except OSError:
                    return
                left -= len(block)
                self.server.passed += len(block)
            self.server.broken += not left
            with suppress(OSError):
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
        patch.setattr(logging.getLogger("werkzeug"), "disabled", True)
        server = moto.ThreadedMotoServer("127.0.0.1", 0)
        server.start()
        proxy = Proxy(server.get_host_and_port()[1])
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in {
            "NO_PROXY": "127.0.0.1",
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
        with serving(proxy):
            store = fsspec.filesystem("s3")
            store.retries = 1  # it would try again for itself
            store.mkdir("bucket")
            content = {"bucket/a.txt": LARGE, "bucket/b.txt.gz": gzip.compress(LARGE), "bucket/deep/c.txt": b"c\n"}
            store.pipe(content, ACL="public-read")
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


def test_a_connection_that_breaks_after_some_bytes_brings_the_whole_file(
    s3: Proxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "_WAITS", (0.01, 0.01, 0.01))
    for address in ("s3://bucket/a.txt", f"{s3.http}/a.txt", "s3://bucket/b.txt.gz"):
        before, s3.passed = s3.broken, 0
        caplog.clear()
        monkeypatch.setattr(s3, "most", 200_000)
        assert texts(address) == LINES
        assert s3.broken > before
        assert s3.passed < 2 * len(LARGE)
        assert re.search(rf"broke at {address}, byte [1-9][0-9]* .*tried again in 0.01 s", caplog.text)


def test_a_connection_that_is_lost_for_good_is_named_with_its_byte_and_a_build_resumes(
    s3: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote, "_WAITS", (0.01, 0.01))
    monkeypatch.setattr(remote, "_LARGEST_BLOCK", 1 << 16)
    fsspec.filesystem("s3").pipe("bucket/short/a.txt", LARGE[:400_000])
    text = TextConfig(source=Files(paths=("s3://bucket/short/a.txt",)))
    tokenizer = learn_from(text, VocabularyConfig(size=300))[0]
    build(text, tokenizer, tmp_path / "whole")

    def commit_and_lose(*given: Any) -> None:
        commit(*given)
        if next(commits) == 4:  # that many batches are read before the first is committed
            monkeypatch.setattr(s3, "most", 0)

    commit, commits = ShardWriter.commit, itertools.count(1)
    options = BuildOptions(workers=0, batch_characters=70_000, commit_seconds=0)
    monkeypatch.setattr(ShardWriter, "commit", commit_and_lose)
    with pytest.raises(ConnectionError, match=r"lost at s3://bucket/short/a\.txt, byte [1-9][0-9]* \("):
        build(text, tokenizer, tmp_path / "resumed", options=options)
    assert (tmp_path / "resumed.partial").exists()
    monkeypatch.undo()
    assert build(text, tokenizer, tmp_path / "resumed")
    for path in filter(Path.is_file, (tmp_path / "whole").rglob("*")):
        assert path.read_bytes() == (tmp_path / "resumed" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_the_store_tells_the_fingerprint_and_a_change(s3: Proxy) -> None:
    store = fsspec.filesystem("s3")
    source = Files(paths=("s3://bucket/a.txt", "s3://bucket/deep/*.txt"))
    s3.passed = 0
    before = source.fingerprint()
    assert s3.passed < 200_000 < len(LARGE)
    assert Files(paths=("s3://bucket/a.txt", "s3://bucket/deep/c.txt")).fingerprint() == before
    try:
        with pytest.raises(UserError, match=r"s3://bucket/deep/c\.txt changed while it was read"), source.watch():
            store.pipe("bucket/deep/c.txt", b"d\n")
        assert source.fingerprint() != before
        with pytest.raises(UserError, match=r"s3://bucket/deep/d\.txt changed while it was read"), source.watch():
            store.pipe("bucket/deep/d.txt", b"d\n")
    finally:
        store.rm("bucket/deep/d.txt")
        store.pipe("bucket/deep/c.txt", b"c\n")
    assert source.fingerprint() == before
    memory = fsspec.filesystem("memory")  # it tells the time only
    memory.pipe("/a.txt", b"one\n")
    source = Files(paths=("memory://a.txt",))
    assert source.fingerprint() == source.fingerprint()
    with pytest.raises(UserError, match=r"memory://a\.txt changed while it was read"), source.watch():
        memory.pipe("/a.txt", b"two\n")


@pytest.mark.parametrize("name", [".jsonl", ".csv", ".tsv", ".parquet", ".parquet.gz"])
def test_a_table_of_labelled_texts_is_read_from_a_store(s3: Proxy, name: str, tmp_path: Path) -> None:
    kind = name.removesuffix(".gz")
    content = FORMATS[kind](LINES[:500]) if kind == name else gzip.compress(FORMATS[kind](LINES[:500]))
    local = write(tmp_path, f"a{name}", content)
    fsspec.filesystem("s3").pipe(f"bucket/tables/a{name}", content, ACL="public-read")
    found = read_table(f"s3://bucket/tables/a{name}", ["text"], TableConfig())
    assert found == read_table(local, ["text"], TableConfig()) == read_table(local.as_uri(), ["text"], TableConfig())
    assert found == read_table(f"{s3.http}/tables/a{name}?who=me", ["text"], TableConfig())


def test_a_server_of_http_that_gives_no_ranges_is_read_from_the_beginning(
    s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.txt", LARGE)
    write(tmp_path, "a.parquet", FORMATS[".parquet"](LINES))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *given: None)
    monkeypatch.setattr(remote, "_WAITS", (0.01, 0.01))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, serving(server):
        address = f"http://127.0.0.1:{server.server_port}"
        assert texts(f"{address}/*.parquet") == LINES
        assert Files(paths=(f"{address}/a.txt",)).fingerprint() != Files(paths=(f"{address}/a.parquet",)).fingerprint()
        proxy = Proxy(server.server_port)
        proxy.most, proxy.times = 300_000, 2
        with serving(proxy):
            assert texts(f"http://127.0.0.1:{proxy.server_address[1]}/a.txt") == LINES
        assert proxy.broken == 2


def test_what_cannot_be_read_is_one_line_that_names_the_address(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for address, said in {
        "s3://none/a.txt": "bucket does not exist",
        "s3://none/*.txt": "bucket does not exist",
        "s3://bucket/none.txt": "no such file",
        "s3://bucket/none/*.txt": "no such file",
        "s3://bucket/deep": "a folder, not a file",
        f"{s3.http}/none.txt": "no such file",
        f"http://127.0.0.1:{closed}/a.txt": "[Cc]onnect",
        "unknown://bucket/a.txt": "Protocol not known",
        "gs://bucket/a.txt": "pip install gcsfs",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            texts(address)
        assert address in str(caught.value)
    with pytest.raises(UserError, match=r"s3://bucket/\*\.txt\* matches 2 files: name one"):
        read_table("s3://bucket/*.txt*", ["text"], TableConfig())


def test_a_store_without_credentials_or_driver_is_one_line(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("s3")
    store.clear_instance_cache()
    monkeypatch.setattr(remote, "_answered", set())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"cannot read s3://bucket/a\.txt .*credentials"):
        texts("s3://bucket/a.txt")
    store.clear_instance_cache()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    with pytest.raises(UserError, match=r"not installed: s3fs, for s3://bucket/a\.txt: pip install .*\[s3\]"):
        texts("s3://bucket/a.txt")


def test_a_command_reads_a_store_and_local_files_load_no_driver(s3: Proxy, tmp_path: Path) -> None:
    output = tmp_path / "tokenizer.json"
    words = [sys.executable, "-m", "tokenizer.train", "--output", str(output), "--vocabulary", "300"]
    done = subprocess.run([*words, "s3://none/*.txt"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n"), output.exists()) == (2, 1, False)
    assert "s3://none/*.txt" in done.stderr
    path = write(tmp_path, "a.txt", LARGE[:10_000])
    script = (
        "import sys; from tokenizer.train import main; main(sys.argv[1:]); "
        "print(sorted({'fsspec', 's3fs', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([words[0], "-c", script, *words[3:], path.as_uri()], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
