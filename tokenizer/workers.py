"""Encode in other processes, for threads of this one could only take turns.

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

from tokenizer.lookup import Encoded, Lookup
from tokenizer.shards import token_type

_MAXIMUM_WORKERS = 3
"""The one process that reads and cleans keeps no more of them busy, and each may take 250 MB."""
_WORTHWHILE_BYTES = 6_000_000
"""Text that is encoded in hardly more time than it takes to start a process stays here."""

_Process = subprocess.Popen[bytes]


def default_workers() -> int:
    """Return how many processes to encode in: none where only one could run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores - 1, _MAXIMUM_WORKERS)


class Workers:
    """Encodes as `Lookup` does: the first megabytes at once, what follows in `count` other processes."""

    def __init__(self, tokenizer: Tokenizer, count: int) -> None:
        """Encode as `tokenizer` does; with no workers everything is encoded here."""
        self.count = count
        self.token_type = token_type(tokenizer.get_vocab_size())
        self._tokenizer = tokenizer
        self._here = Lookup(tokenizer)
        self._encoded_bytes = 0
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None  # each waits for one process at a time
        self._open = ExitStack()

    def submit(self, texts: Sequence[str]) -> "Future[Encoded]":
        """Return the promise of the encoding of each of `texts`."""
        if not self.count or self._encoded_bytes < _WORTHWHILE_BYTES:
            self._encoded_bytes += sum(len(text.encode()) for text in texts)
            done: Future[Encoded] = Future()
            done.set_result(self._here.encode(texts))
            return done
        if self._threads is None:
            self._threads = self._start()
        return self._threads.submit(self._encode, texts)

    def close(self) -> None:
        """End the processes, when they have done what they were given."""
        self._open.close()

    def _start(self) -> ThreadPoolExecutor:
        processes = [self._open.enter_context(_process()) for _ in range(self.count)]
        threads = self._open.enter_context(ThreadPoolExecutor(self.count))
        for process in processes:
            threads.submit(self._hand_tokenizer, process)
        return threads

    def _hand_tokenizer(self, process: _Process) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # who asks it next will find out that it died
            pickle.dump(self._tokenizer.to_str(), process.stdin)
        self._idle.put(process)

    def _encode(self, texts: Sequence[str]) -> Encoded:
        process = self._idle.get()
        try:
            return _ask(process, texts)
        finally:
            self._idle.put(process)


def _ask(process: _Process, texts: Sequence[str]) -> Encoded:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump(texts, process.stdin)
        process.stdin.flush()
        return cast(Encoded, pickle.load(process.stdout))
    except (EOFError, pickle.UnpicklingError, BrokenPipeError):
        raise ChildProcessError(f"an encoding process died with code {process.wait()}: is there memory left?") from None


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
    """Encode whatever comes in until the parent closes the pipe or is gone."""
    with suppress(EOFError, BrokenPipeError):
        lookup = Lookup(Tokenizer.from_str(pickle.load(sys.stdin.buffer)))
        while True:
            texts = pickle.load(sys.stdin.buffer)
            pickle.dump(lookup.encode(texts), sys.stdout.buffer)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
