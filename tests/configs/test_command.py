import io
import logging
import subprocess
import sys
from collections.abc import Sequence

import pytest

from configs import UserError, command


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


def test_a_reader_that_leaves_early_is_no_error() -> None:
    program = "from configs import command; command.run(lambda _: print('line\\n' * 100_000))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 0


def test_blank_lines_and_a_byte_order_mark_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffone\r\n\n \t\n  two \n\ufeffthree"))
    assert list(command.lines()) == ["one", "  two ", "\ufeffthree"]
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
