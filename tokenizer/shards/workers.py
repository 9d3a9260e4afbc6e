"""Call a function in other processes: the threads of one could only take turns.

They are plain child processes, spoken to over their standard input and output. Those of `multiprocessing` would
either copy a parent that has threads, which can hang, or import its main module, and with it torch, in each. Those of
loky took a third longer to build 3 to 15 MB of text and outlive a parent that is killed.
"""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Generic, TypeVar, cast

_MAXIMUM_WORKERS = 4
"""The process that reads, drops duplicates and writes keeps no more of them busy, and each may take 250 MB."""

_AHEAD = 2
"""Requests for each process at a time: the next one is there when an answer leaves."""

_SERVE = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"
"""The program of a process, which finds its modules where the parent does, in that order."""
_Process = subprocess.Popen[bytes]
Request = TypeVar("Request")
Answer = TypeVar("Answer")


def default_workers() -> int:
    """Return the number of processes worth starting beside this one, which works too: none on a single core."""
    return min(len(cores_here()) - 1, _MAXIMUM_WORKERS)


def cores_here() -> list[int]:
    """Return the numbers of the cores of this machine that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


class Workers(Generic[Request, Answer]):
    """Answer requests in other processes, and in this one while all of them have enough to do."""

    def __init__(self, start: Callable[[], Callable[[Request], Answer]], count: int) -> None:
        """Answer requests in `count` processes and here; with 0, all here.

        Each process calls `start` once for the function that answers; `start` and all it holds must be picklable.
        """
        self.count = count
        self._start, self._answer = start, start()
        self._processes: list[_Process] = []
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._asked: list[Future[Answer]] = []
        self._threads = ThreadPoolExecutor(max(count, 1))  # each waits for one process at a time

    @property
    def most_left(self) -> int:
        """Return the number of requests that may be unanswered, or answered and kept for their turn."""
        return 4 * _AHEAD * self.count

    def submit(self, request: Request) -> "Future[Answer]":
        """Return the future answer; its error is ChildProcessError where a process died."""
        self._asked = [future for future in self._asked if not future.done()]
        if len(self._asked) == _AHEAD * self.count:
            done: Future[Answer] = Future()
            done.set_result(self._answer(request))
            return done
        if not self._processes:
            self._start_processes()
        self._asked.append(future := self._threads.submit(self._ask, request))
        return future

    def map(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yield the answers in the order of the requests, of which few are under way at any time."""
        submitted: deque[Future[Answer]] = deque()
        for request in requests:
            submitted.append(self.submit(request))
            while len(submitted) > self.most_left:
                yield submitted.popleft().result()
        while submitted:
            yield submitted.popleft().result()

    def close(self) -> None:
        """End the processes once they have answered all that was submitted."""
        self._threads.shutdown()
        for process in self._processes:
            process.communicate()  # closes its input, the sign to end; a dead one's missing answer is raised elsewhere

    def _start_processes(self) -> None:
        start = pickle.dumps(self._start)
        for _ in range(self.count):
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the parent to act on
            )
            self._processes.append(process)
            self._threads.submit(self._configure, process, start)

    def _configure(self, process: _Process, start: bytes) -> None:
        with suppress(BrokenPipeError):  # the death is raised where the first answer is missing
            _pipes(process)[0].write(start)
        self._idle.put(process)

    def _ask(self, request: Request) -> Answer:
        process = self._idle.get()
        requests, answers = _pipes(process)
        try:
            pickle.dump(request, requests, pickle.HIGHEST_PROTOCOL)
            requests.flush()
            return cast(Answer, pickle.load(answers))
        except (EOFError, pickle.UnpicklingError, BrokenPipeError) as error:
            code = process.wait()
            reason = "is there memory left?" if code < 0 else "its error stands above"
            raise ChildProcessError(f"a process at work on text died with code {code}: {reason}") from error
        finally:
            self._idle.put(process)


def _pipes(process: _Process) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def serve() -> None:
    """Answer requests from standard input on standard output, as a worker, until the parent closes it or is gone."""
    with suppress(EOFError, BrokenPipeError):
        answer = pickle.load(sys.stdin.buffer)()
        while True:
            answered = answer(pickle.load(sys.stdin.buffer))
            pickle.dump(answered, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()
