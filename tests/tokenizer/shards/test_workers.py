import dataclasses
import subprocess
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import TIMEOUT_SECONDS
from tests.tokenizer.samples import files, prose, tokenizer, write_lines
from tokenizer.cleaning import TextConfig
from tokenizer.shards.build import BuildOptions, Columns, build, start_encoding
from tokenizer.shards.workers import Workers
from tokenizer.sources import Document

LINES = prose(200)
DOCUMENTS = [Document(line, group=f"{number % 7}") for number, line in enumerate(LINES)]
LEARNED = tokenizer(LINES, size=300)
TEXT = TextConfig(minimum_words=4, deduplicate="sentences", segments="documents", heldout_share=0.3)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Collect the processes that are started."""
    processes: list[subprocess.Popen[bytes]] = []

    class Spy(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Spy)
    return processes


START = partial(start_encoding, TEXT, LEARNED.to_str(), False)


def columns(documents: Sequence[Document]) -> Columns:
    return tuple(zip(*documents, strict=True))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_other_processes_encode_as_this_one_does(started: list[subprocess.Popen[bytes]], count: int) -> None:
    encode, batches = START(), [columns(DOCUMENTS[a : a + 20]) for a in range(0, 200, 20)]
    with closing(Workers(START, count)) as workers:
        for batch, (their_table, theirs) in zip(batches, workers.map(batches), strict=True):
            table, ours = encode(batch)
            for field in dataclasses.fields(table):
                np.testing.assert_array_equal(getattr(their_table, field.name), getattr(table, field.name))
            for found, expected in zip(theirs, ours, strict=True):
                np.testing.assert_array_equal(found, expected)
    assert len(started) == count
    assert all(process.returncode == 0 for process in started)


@pytest.mark.parametrize("answered", [0, 1])
def test_a_process_that_dies_is_an_error_and_no_wait(started: list[subprocess.Popen[bytes]], answered: int) -> None:
    with closing(Workers(START, 1)) as workers:
        for _ in range(answered):
            workers.submit(columns(DOCUMENTS)).result()
        workers.submit(columns(DOCUMENTS))
        started[0].kill()
        with pytest.raises(ChildProcessError, match="code -9"):
            workers.submit(columns(DOCUMENTS * 100)).result(timeout=TIMEOUT_SECONDS)


def test_this_process_answers_while_the_others_have_enough_to_do(started: list[subprocess.Popen[bytes]]) -> None:
    with closing(Workers(START, 1)) as workers:
        futures = [workers.submit(columns(DOCUMENTS)) for _ in range(3)]
        assert [future.done() for future in futures] == [False, False, True]
        assert len({future.result(timeout=TIMEOUT_SECONDS)[1].tokens.tobytes() for future in futures}) == 1
    assert len(started) == 1


@pytest.mark.parametrize(("batches", "processes"), [(3, 0), (4, 2)])
def test_a_small_text_starts_no_process(
    started: list[subprocess.Popen[bytes]], tmp_path: Path, batches: int, processes: int
) -> None:
    lines = [line.ljust(101, "x") for line in prose(5 * batches)]
    options = BuildOptions(workers=2, batch_characters=500)
    build(
        files(write_lines(tmp_path / "a.txt", lines), split_sentences=False), LEARNED, tmp_path / "s", options=options
    )
    assert len(started) == processes
