import subprocess
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from tests.tokenizer.samples import prose, tokenizer
from tokenizer.cleaning import TextConfig
from tokenizer.shards import workers
from tokenizer.shards.cutter import DocumentEncoder
from tokenizer.shards.workers import Workers
from tokenizer.sources import Document

LINES = prose(200)
DOCUMENTS = [Document(line, group=f"{number % 7}") for number, line in enumerate(LINES)]
LEARNED = tokenizer(LINES, size=300)
TEXT = TextConfig(minimum_words=4, deduplicate="sentences", segments="documents", heldout_share=0.3)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Let even the smallest text be worth a process, and collect those that are started."""
    processes: list[subprocess.Popen[bytes]] = []

    class Spy(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            processes.append(self)

    monkeypatch.setattr(workers, "_WORTHWHILE_CHARACTERS", 0)
    monkeypatch.setattr(subprocess, "Popen", Spy)
    return processes


@pytest.mark.parametrize("count", [0, 1, 3])
def test_other_processes_encode_as_this_one_does(started: list[subprocess.Popen[bytes]], count: int) -> None:
    here = DocumentEncoder(TEXT, LEARNED)
    with closing(Workers(TEXT, LEARNED, count)) as cutters:
        promised = [(DOCUMENTS[a : a + 20], cutters.submit(DOCUMENTS[a : a + 20])) for a in range(0, 200, 20)]
        for documents, work in promised:
            theirs, ours = work.result(), here(documents)
            assert theirs.cuts.hashes == ours.cuts.hashes
            for name in ("lengths", "heldout", "left_out"):
                np.testing.assert_array_equal(getattr(theirs.cuts, name), getattr(ours.cuts, name))
            for found, expected in zip(theirs.encoded, ours.encoded, strict=True):
                np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(theirs.words, ours.words)
            np.testing.assert_array_equal(theirs.text_bytes, ours.text_bytes)
    assert len(started) == count
    assert all(process.returncode == 0 for process in started)


@pytest.mark.parametrize("answered", [0, 1])
def test_a_process_that_dies_is_an_error_and_no_wait(started: list[subprocess.Popen[bytes]], answered: int) -> None:
    with closing(Workers(TEXT, LEARNED, 1)) as cutters:
        for _ in range(answered):
            cutters.submit(DOCUMENTS).result()
        cutters.submit(DOCUMENTS)
        started[0].kill()
        with pytest.raises(ChildProcessError, match="cuts and encodes died with code -9: is there memory"):
            cutters.submit(DOCUMENTS * 100).result(timeout=30)


def test_a_small_text_starts_no_process() -> None:
    with closing(Workers(TEXT, LEARNED, 2)) as cutters:
        assert cutters.submit(DOCUMENTS).done()
