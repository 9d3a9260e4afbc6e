import ast
import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tqdm import tqdm

from configs import UserError, command, streams
from tests.processes import TIMEOUT_SECONDS
from tests.unread import UNREAD, run_closed, unread

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def outcome(error: BaseException | None, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def main(arguments: Sequence[str]) -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as caught:
        command.run(main)
    return caught.value.code, capsys.readouterr().err


def test_a_finished_command_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(None, capsys) == (0, "")


def test_a_mistake_is_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(UserError("no such file: a.txt"), capsys) == (2, "error: no such file: a.txt\n")


def test_a_failing_disk_is_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(28, "No space left on device", "runs/a")
    assert outcome(full, capsys) == (2, "error: No space left on device: runs/a\n")


def test_an_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(KeyboardInterrupt(), capsys) == (130, "\ninterrupted\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 TiB for an array with shape (1, 2)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_a_lack_of_memory_is_one_line_and_exits_with_2(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = outcome(error, capsys)
    assert code == 2
    assert message.startswith("error: not enough memory: lower the rows")
    assert message.count("\n") == 1


def test_our_own_mistake_keeps_its_traceback() -> None:
    def main(arguments: Sequence[str]) -> None:
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        command.run(main)


def test_the_arguments_are_those_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Sequence[str]] = []
    monkeypatch.setattr(sys, "argv", ["prog", "a=1", "--json"])
    with pytest.raises(SystemExit):
        command.run(received.append)
    assert received == [["a=1", "--json"]]


def test_a_signal_that_stopped_the_work_is_in_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(KeyboardInterrupt(15), capsys) == (143, "\ninterrupted\n")


MESSAGES = """
import logging, os, sys, warnings
from pathlib import Path
from tqdm import tqdm
from configs import UserError, command

def main(_):
    for number in tqdm(range(3)):
        print("message " * 2000)
        print("message", file=sys.stderr)
        logging.getLogger("mlm").warning("logged")
        warnings.warn(f"warning {number}")
    Path("done").touch()
    END

command.run(main)
"""


def program(end: str) -> list[str]:
    """Return a command that sends all kinds of messages, does its work, and ends by the statement `end`."""
    return [sys.executable, "-c", MESSAGES.replace("END", end)]


@pytest.mark.parametrize("kind", UNREAD)
def test_messages_that_nobody_reads_cost_nothing(kind: str, tmp_path: Path) -> None:
    for end, code in (("pass", 0), ("raise UserError('mistake')", 2), ("sys.exit(143)", 143)):
        with unread(kind) as stream:
            process = subprocess.run(program(end), stdout=stream, stderr=stream, cwd=tmp_path, env=ENVIRONMENT)
        assert (process.returncode, (tmp_path / "done").exists()) == (code, True), end
        (tmp_path / "done").unlink()


def test_messages_to_one_stream_arrive_if_the_other_is_unread(tmp_path: Path) -> None:
    with unread("a closed pipe") as stream:
        words = program("raise UserError('mistake')")
        process = subprocess.run(words, stdout=stream, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == "error: mistake"
    assert process.stderr.count("logged") == 3


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_cost_nothing_and_no_file_takes_their_place(redirection: str, tmp_path: Path) -> None:
    end = "file = open('data', 'w'); os.write(1, b'C++'); os.write(2, b'C++'); assert file.fileno() > 2"
    assert run_closed(redirection, *program(end)[1:], cwd=tmp_path) == 0
    assert (tmp_path / "data").read_bytes() == b""


def test_later_child_processes_do_not_meet_the_pipe_that_nobody_reads(tmp_path: Path) -> None:
    child = "import subprocess; subprocess.run([sys.executable, '-c', 'print(1)'], check=True)"
    with unread("a closed pipe") as stream:
        process = subprocess.run(program(child), stdout=stream, stderr=stream, cwd=tmp_path, env=ENVIRONMENT)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("kind", "code"), [("a closed pipe", 141), ("a hung-up terminal", 141), ("a full disk", 2), (None, 0)]
)
@pytest.mark.parametrize("result", ["command.show('result')", "command.Parser(prog='x').parse_args(['--help'])"])
def test_a_result_that_nobody_reads_ends_the_command(kind: str | None, code: int, result: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", f"from configs import command; command.run(lambda _: {result})"]
    with unread(kind) if kind else (tmp_path / "result").open("w") as stream:
        process = subprocess.run(words, stdout=stream, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    lines = process.stderr.splitlines()
    assert (process.returncode, len(lines)) == (code, int(code == 2))
    assert code != 2 or "standard output" in lines[0]


def test_a_stream_that_another_program_made_non_blocking_loses_nothing() -> None:
    lines = "from configs import command; command.run(lambda _: print('line\\n' * 100_000))"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen([sys.executable, "-c", lines], stdout=writer, env=ENVIRONMENT)
    os.close(writer)
    time.sleep(0.3)  # the pipe fills
    with os.fdopen(reader) as read:
        assert len(read.readlines()) == 100_001
    assert process.wait() == 0


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_of_standard_input_have_any_end(end: bytes) -> None:
    program = "from configs import command; print([ascii(line) for line in command.lines()])"
    given = end.join(["one\u2028".encode(), b"", b"two\x0b\x1c", b"three"]) + end
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, check=True)
    assert ast.literal_eval(done.stdout.decode()) == [ascii(line) for line in ("one\u2028", "two\x0b\x1c", "three")]


def test_a_pipe_that_is_named_as_output_and_whose_reader_leaves_is_a_result_unread(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from configs import command, files
command.run(lambda words: files.write_text(Path(words[0]), "text " * 100_000))
"""
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen([sys.executable, "-c", program, tmp_path / "pipe"], stderr=subprocess.PIPE)
    with (tmp_path / "pipe").open("rb") as pipe:
        assert pipe.read(4) == b"text"
    assert writer.communicate(timeout=TIMEOUT_SECONDS)[1] == b""
    assert writer.returncode == command.EXIT_UNREAD


def test_a_backend_that_a_notebook_hands_on_stops_no_picture() -> None:
    program = "from configs import command; command.run(lambda words: __import__('matplotlib.figure'))"
    environment = os.environ | {"MPLBACKEND": "absent"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("absent", [True, False])
def test_progress_needs_no_stream(absent: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "closed").open("w") as closed:
        pass
    monkeypatch.setattr(sys, "stderr", None if absent else closed)
    assert list(tqdm("ab", file=streams.messages(), disable=False)) == ["a", "b"]
    monkeypatch.setattr(sys, "stdin", None if absent else closed)
    with pytest.raises(UserError, match="standard input"):
        next(command.lines())


def test_a_standard_input_that_cannot_be_read_is_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with os.fdopen(os.open(tmp_path / "written", os.O_CREAT | os.O_WRONLY)) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UserError, match="standard input"):
            next(command.lines())


def test_blank_lines_and_a_byte_order_mark_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffone\r\n\n \t\n  two \n\ufeffthree"))
    assert list(command.lines()) == ["one", "  two ", "three"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeff\n"))
    assert list(command.lines()) == []


def test_lines_after_a_wrong_one_are_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answered = []

    def answer(line: str) -> None:
        if line == "wrong":
            raise UserError("this line is wrong")
        answered.append(line)

    monkeypatch.setattr(sys, "stdin", io.StringIO("one\nwrong\ntwo\nwrong\n"))
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=r"\b2 of"):
        command.answer_lines(answer)
    assert answered == ["one", "two"]
    assert caplog.messages == ["this line is wrong"] * 2
