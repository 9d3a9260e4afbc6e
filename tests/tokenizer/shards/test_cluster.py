"""Real processes of Ray, two of them: the command, its workers, and the end of either."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.processes import TIMEOUT_SECONDS, call, descendants, finish, start
from tests.tokenizer.samples import files, prose, tokenizer, write_lines
from tests.tokenizer.shards.test_parts import contents, here
from tokenizer.cache import save
from tokenizer.shards import cluster
from tokenizer.shards.parts import build_parts

pytest.importorskip("ray", reason="runs real workers of Ray")

ENCODE = ("a.txt", "--tokenizer", "t.json", "--output", "shards", "--workers")
LINES = [*prose(8000), *prose(300)]
LEARNED = tokenizer(LINES[:1000])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED"):  # which the command sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
    write_lines(tmp_path / "a.txt", LINES)
    save(LEARNED, tmp_path / "t.json")
    return tmp_path


def alive(pid: int) -> bool:
    """Return True unless the process is gone, or a zombie that nobody waits for."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_killed_command_and_killed_workers_end_with_the_same_bytes(folder: Path) -> None:
    build_parts(files(folder / "a.txt"), LEARNED, folder / "here", here, part_bytes=50_000)
    words = [sys.executable, "-m", "tokenizer.encode", *ENCODE, "ray:2", "--part-megabytes", "0.05"]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": folder}
    end = time.monotonic() + TIMEOUT_SECONDS

    command = start(words, **streams)
    while not (folder / "shards" / "part-00001").exists():
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    family = descendants(command.pid)
    command.kill()
    finish(command)
    working = [pid for pid, name in family.items() if "Agent" not in name]  # two idle ones of Ray take a minute
    while any(map(alive, working)):
        assert time.monotonic() < end
        time.sleep(0.1)
    kept = {path: path.stat().st_mtime_ns for path in (folder / "shards").glob("part-?????")}
    assert not (folder / "shards" / "parts.json").exists()

    command, killed = start(words, **streams), set[int]()
    while command.poll() is None and len(killed) < 2:
        for pid, name in descendants(command.pid).items():
            if name.startswith("ray::make") and pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        assert time.monotonic() < end
    finished = finish(command)
    assert finished.returncode == 0, finished.stderr
    assert killed
    assert "duplicate documents" in finished.stdout
    assert contents(folder / "shards") == contents(folder / "here")
    assert all(path.stat().st_mtime_ns == moment for path, moment in kept.items())


def test_a_port_that_is_no_cluster_is_told_soon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 1.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:  # Ray asks for minutes
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ended = call(folder, "tokenizer.encode", *ENCODE, "ray", "--address", address)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert address in ended.stderr


def test_without_the_extra_its_command_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = call(folder, "tokenizer.encode", *ENCODE, "ray")
    assert ended.returncode == 2
    assert "[ray]" in ended.stderr


def test_what_is_wrong_with_the_workers_is_one_line(folder: Path) -> None:
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        for words, named in [
            (["ray", "--address", address], address),
            (["ray", "--address", "somewhere"], "somewhere"),
            (["ray:2", "--address", address], "ray:"),
            (["2", "--address", address], "--workers ray"),
            (["ray:0"], "ray:"),
            (["many"], "many"),
            (["ray", "--part-megabytes", "0"], "--part-megabytes"),
        ]:
            ended = call(folder, "tokenizer.encode", *ENCODE, *words)
            assert ended.returncode == 2, words
            assert ended.stderr.count("\n") == 1, words
            assert named in ended.stderr
    assert not (folder / "shards").exists()
