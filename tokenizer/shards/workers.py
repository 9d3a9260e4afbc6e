"""Cut and encode documents in other processes, for threads of this one could only take turns.

They are plain child processes, spoken to over their standard input and output. Those of `multiprocessing` would
either copy a parent that has threads, which can hang, or import its main module, and with it torch, in each.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from typing import cast

from tokenizers import Tokenizer

from tokenizer.cleaning import TextConfig
from tokenizer.shards.cutter import DocumentEncoder, EncodedBatch
from tokenizer.sources import Document

_MAXIMUM_WORKERS = 4
"""The one process that reads, drops duplicates and writes keeps no more of them busy, and each may take 250 MB."""
_WORTHWHILE_CHARACTERS = 1_500_000
"""Text that is done with in hardly more time than it takes to start a process stays here."""

_Process = subprocess.Popen[bytes]


def default_workers() -> int:
    """Return how many processes to cut and encode in: none where only one could run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MAXIMUM_WORKERS) if cores > 1 else 0


class Workers:
    """Does as a `DocumentEncoder` does: the first megabytes at once, what follows in `count` other processes."""

    def __init__(self, text: TextConfig, tokenizer: Tokenizer, count: int) -> None:
        """Cut as `text` says and encode as `tokenizer` does; with no workers all of it is done here."""
        self.count = count
        self._text, self._tokenizer = text, tokenizer
        self._here = DocumentEncoder(text, tokenizer)
        self._characters = 0
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None  # each waits for one process at a time
        self._open = ExitStack()

    def submit(self, documents: Sequence[Document]) -> "Future[EncodedBatch]":
        """Return the promise of what becomes of `documents`."""
        if not self.count or self._characters < _WORTHWHILE_CHARACTERS:
            self._characters += sum(len(document.text) for document in documents)
            done: Future[EncodedBatch] = Future()
            done.set_result(self._here(documents))
            return done
        if self._threads is None:
            self._threads = self._start()
        return self._threads.submit(self._ask, documents)

    def close(self) -> None:
        """End the processes, when they have done what they were given."""
        self._open.close()

    def _start(self) -> ThreadPoolExecutor:
        instructions = pickle.dumps((self._text, self._tokenizer.to_str()))
        processes = [self._open.enter_context(_process()) for _ in range(self.count)]
        threads = self._open.enter_context(ThreadPoolExecutor(self.count))
        for process in processes:
            threads.submit(self._instruct, process, instructions)
        return threads

    def _instruct(self, process: _Process, instructions: bytes) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # who asks it next will find out that it died
            process.stdin.write(instructions)
        self._idle.put(process)

    def _ask(self, documents: Sequence[Document]) -> EncodedBatch:
        process = self._idle.get()
        try:
            return _ask(process, documents)
        finally:
            self._idle.put(process)


def _ask(process: _Process, documents: Sequence[Document]) -> EncodedBatch:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        columns = tuple(zip(*documents, strict=True))  # less to pickle than a tuple each
        pickle.dump(columns, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        return cast(EncodedBatch, pickle.load(process.stdout))
    except (EOFError, pickle.UnpicklingError, BrokenPipeError):
        code = process.wait()
        reason = "is there memory left?" if code < 0 else "its error stands above"
        raise ChildProcessError(f"a process that cuts and encodes died with code {code}: {reason}") from None


@contextmanager
def _process() -> Iterator[_Process]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C is for the parent to act on
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        with suppress(BrokenPipeError):  # of one that died: that was said where its answer was missed
            process.stdin.close()  # the sign to end
        process.stdout.close()
        process.wait()


def _serve() -> None:
    """Cut and encode whatever comes in until the parent closes the pipe or is gone."""
    with suppress(EOFError, BrokenPipeError):
        text, tokenizer = pickle.load(sys.stdin.buffer)
        cutter = DocumentEncoder(text, Tokenizer.from_str(tokenizer))
        while True:
            documents = list(map(Document, *pickle.load(sys.stdin.buffer)))
            pickle.dump(cutter(documents), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
