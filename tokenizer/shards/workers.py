"""Split documents into sentences and encode them, in other processes: the threads of one could only take turns.

They are plain child processes, spoken to over their standard input and output. Those of `multiprocessing` would
either copy a parent that has threads, which can hang, or import its main module, and with it torch, in each. Those of
loky took a third longer to build 3 to 15 MB of text and outlive a parent that is killed.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, cast

from tokenizers import Tokenizer

from tokenizer.cached_encoder import CachedEncoder, Encoded
from tokenizer.cleaning import SentenceTable, TextConfig, as_read_by, split_documents
from tokenizer.sources import Document

_MAXIMUM_WORKERS = 4
"""The one process that reads, drops duplicates and writes keeps no more of them busy, and each may take 250 MB."""

_SERVE = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"
"""The program of a process, which finds its modules where the parent does, in that order."""
_Process = subprocess.Popen[bytes]
EncodedBatch = tuple[SentenceTable, Encoded]
"""Documents split into sentences, and the tokens of all sentences, duplicates included."""


def encode_documents(
    text: TextConfig, encoder: CachedEncoder, documents: Sequence[Document], *, at_sentences: bool = False
) -> EncodedBatch:
    """Split documents into sentences and encode these, in their order; equal texts are those that are read alike."""
    sentences, table = split_documents(text, documents, as_read_by(encoder.normalizer), at_sentences=at_sentences)
    return table, encoder.encode(sentences)


def default_workers() -> int:
    """Return the number of processes worth starting: none on a single core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MAXIMUM_WORKERS) if cores > 1 else 0


class Workers:
    """Encode documents: the first megabytes at once, and the rest in other processes."""

    def __init__(
        self, text: TextConfig, tokenizer: Tokenizer, count: int, local_characters: int, *, at_sentences: bool = False
    ) -> None:
        """Encode the first `local_characters` here and the rest in `count` processes; with 0 processes, all here."""
        self.count = count
        self._text, self._tokenizer, self._at_sentences = text, tokenizer, at_sentences
        self._encoder = CachedEncoder(tokenizer)
        self._local_characters = local_characters
        self._processes: list[_Process] = []
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._threads = ThreadPoolExecutor(max(count, 1))  # each waits for one process at a time

    def submit(self, documents: Sequence[Document]) -> "Future[EncodedBatch]":
        """Return the future result of encoding `documents`; its error is ChildProcessError where a process died."""
        if not self.count or self._local_characters > 0:
            self._local_characters -= sum(len(document.text) for document in documents)
            done: Future[EncodedBatch] = Future()
            done.set_result(encode_documents(self._text, self._encoder, documents, at_sentences=self._at_sentences))
            return done
        if not self._processes:
            self._start()
        return self._threads.submit(self._encode, documents)

    def close(self) -> None:
        """End the processes once they have encoded all that was submitted."""
        self._threads.shutdown()
        for process in self._processes:
            process.communicate()  # closes its input, the sign to end; a dead one's missing answer is raised elsewhere

    def _start(self) -> None:
        settings = pickle.dumps((self._text, self._tokenizer.to_str(), self._at_sentences))
        for _ in range(self.count):
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the parent to act on
            )
            self._processes.append(process)
            self._threads.submit(self._configure, process, settings)

    def _configure(self, process: _Process, settings: bytes) -> None:
        with suppress(BrokenPipeError):  # the death is raised where the first answer is missing
            _pipes(process)[0].write(settings)
        self._idle.put(process)

    def _encode(self, documents: Sequence[Document]) -> EncodedBatch:
        process = self._idle.get()
        requests, answers = _pipes(process)
        try:
            columns = tuple(zip(*documents, strict=True))  # less to pickle than a tuple each
            pickle.dump(columns, requests, pickle.HIGHEST_PROTOCOL)
            requests.flush()
            return cast(EncodedBatch, pickle.load(answers))
        except (EOFError, pickle.UnpicklingError, BrokenPipeError) as error:
            code = process.wait()
            reason = "is there memory left?" if code < 0 else "its error stands above"
            raise ChildProcessError(f"a process that encodes text died with code {code}: {reason}") from error
        finally:
            self._idle.put(process)


def _pipes(process: _Process) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def serve() -> None:
    """Encode documents from standard input to standard output, as a worker, until the parent closes it or is gone."""
    with suppress(EOFError, BrokenPipeError):
        text, tokenizer, at_sentences = pickle.load(sys.stdin.buffer)
        encoder = CachedEncoder(Tokenizer.from_str(tokenizer))
        while True:
            documents = list(map(Document, *pickle.load(sys.stdin.buffer)))
            batch = encode_documents(text, encoder, documents, at_sentences=at_sentences)
            pickle.dump(batch, sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)
            sys.stdout.buffer.flush()
