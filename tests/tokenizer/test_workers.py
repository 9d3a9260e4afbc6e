import subprocess
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from tests.tokenizer.samples import prose, tokenizer
from tokenizer import workers
from tokenizer.lookup import Lookup
from tokenizer.workers import Workers

LINES = prose(200)
LEARNED = tokenizer(LINES, size=300)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Let even the smallest text be worth a process, and collect those that are started."""
    processes: list[subprocess.Popen[bytes]] = []

    class Spy(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            processes.append(self)

    monkeypatch.setattr(workers, "_WORTHWHILE_BYTES", 0)
    monkeypatch.setattr(subprocess, "Popen", Spy)
    return processes


@pytest.mark.parametrize("count", [0, 1, 3])
def test_other_processes_encode_as_this_one_does(started: list[subprocess.Popen[bytes]], count: int) -> None:
    here = Lookup(LEARNED)
    with closing(Workers(LEARNED, count)) as encoders:
        promised = [(LINES[a : a + 20], encoders.submit(LINES[a : a + 20])) for a in range(0, 200, 20)]
        for texts, encoded in promised:
            for theirs, ours in zip(encoded.result(), here.encode(texts), strict=True):
                np.testing.assert_array_equal(theirs, ours)
    assert len(started) == count
    assert all(process.returncode == 0 for process in started)


@pytest.mark.parametrize("answered", [0, 1])
def test_a_process_that_dies_is_an_error_and_no_wait(started: list[subprocess.Popen[bytes]], answered: int) -> None:
    with closing(Workers(LEARNED, 1)) as encoders:
        for _ in range(answered):
            encoders.submit(LINES).result()
        encoders.submit(LINES)
        started[0].kill()
        with pytest.raises(ChildProcessError, match="an encoding process died with code -9"):
            encoders.submit(LINES * 100).result(timeout=30)


def test_a_small_text_starts_no_process() -> None:
    with closing(Workers(LEARNED, 2)) as encoders:
        assert encoders.submit(LINES).done()
