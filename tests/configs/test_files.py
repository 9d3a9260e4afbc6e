"""Files appear whole or not at all, on any disk."""

import errno
import fcntl
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from configs import UserError, files

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def test_a_file_appears_at_the_end_and_keeps_its_former_content_until_then(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("former")
    usual_mode = path.stat().st_mode  # by the umask, as any new file's
    with files.written(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "former"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode == usual_mode


def write(path: Path, text: str, error: Exception | None = None, theirs: str = "") -> None:
    """Write a new file, during which an error is raised, or another process writes it."""
    with files.written(path, new=True) as partial:
        partial.write_text(text)
        if error is not None:
            raise error
        if theirs:
            path.write_text(theirs)


@pytest.mark.parametrize("error", [ValueError("a fault"), OSError(errno.ENOSPC, "No space left on device")])
def test_after_an_error_nothing_is_left_and_the_second_try_works(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "out.txt"
    with pytest.raises(type(error)) as raised:
        write(path, "half", error)
    if isinstance(error, OSError):
        assert isinstance(raised.value, OSError)
        assert raised.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
    files.write_text(path, "whole", new=True)
    assert path.read_text() == "whole"


def test_what_another_process_wrote_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with pytest.raises(UserError, match=r"out\.txt"):
        write(path, "ours", theirs="theirs")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    for text in ("first", "second"):
        files.write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text


def test_a_named_pipe_and_standard_output_are_written_to(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    files.write_text(pipe, "through the pipe", new=True)
    reader.join(10)
    assert read == ["through the pipe"]
    assert list(tmp_path.iterdir()) == [pipe]
    program = "from pathlib import Path; from configs import files; files.write_text(Path('/dev/stdout'), 'out')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "out"


def test_a_device_that_is_full_is_named() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_text(Path("/dev/full"), "text", new=True)
    assert caught.value.filename == "/dev/full"


@pytest.mark.parametrize("name", ["a" * 255, "한" * 85, "new\nline", "*?[x]", " = ", "-dash", os.fsdecode(b"caf\xe9")])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    files.write_text(tmp_path / name, f"{name} itself", new=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_output_in_no_folder_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent"):
        files.check_new(tmp_path / "absent" / "out.txt")


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second:
        assert files.lock(first.fileno(), path)
        assert not files.lock(second.fileno(), path)
        first.close()
        assert files.lock(second.fileno(), path, shared=True)


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks_is_warned_of_once(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "_WARNED", set())
    with (tmp_path / "lock").open("w") as file, caplog.at_level(logging.WARNING):
        assert files.lock(file.fileno(), tmp_path)
        assert files.lock(file.fileno(), tmp_path, shared=True)
    (line,) = caplog.messages
    assert str(tmp_path) in line


def test_a_lock_that_fails_otherwise_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot lock") as raised:
        files.lock(9999, tmp_path)
    assert raised.value.filename == str(tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), sqlite3.OperationalError("disk is full")])
def test_a_full_temporary_folder_is_named_with_its_variable(error: Exception) -> None:
    with pytest.raises(UserError, match=r"TMPDIR"), files.temporary():
        raise error
    with pytest.raises(FileNotFoundError), files.temporary():
        raise FileNotFoundError(errno.ENOENT, "no such file", "text.txt")


def test_a_signal_leaves_no_half_written_folder(tmp_path: Path) -> None:
    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt) as raised, files.written_folder(tmp_path / "out"):
            signal.raise_signal(signal.SIGTERM)
        assert raised.value.args == (signal.SIGTERM,)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, former)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [None, "file"])
def test_a_full_disk_names_the_folder_and_not_its_partial_name(tmp_path: Path, place: str | None) -> None:
    with pytest.raises(OSError, match="No space") as raised, files.written_folder(tmp_path / "out") as partial:
        raise OSError(errno.ENOSPC, "No space left", *([] if place is None else [str(partial / place)]))
    assert raised.value.filename == str(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
