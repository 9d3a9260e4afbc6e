"""Build token shards from text: streaming, in flat memory, and going on where a killed build was."""

import errno
import itertools
import shutil
import sqlite3
import sys
import time
from collections import Counter, deque
from concurrent.futures import Future
from contextlib import ExitStack, closing
from pathlib import Path

from tokenizers import Tokenizer
from tqdm import tqdm

from configs import UserError
from tokenizer import partial, shards, vocabulary
from tokenizer.lookup import Encoded
from tokenizer.partial import State
from tokenizer.shards import SIDES
from tokenizer.text import Cleaner, Seen, Side, Text
from tokenizer.workers import Workers, default_workers
from tokenizer.writer import Batch, SideWriter, seal

_BATCH_CHARACTERS = 1_000_000


def build(
    text: Text,
    tokenizer: Tokenizer,
    output: Path,
    *,
    fingerprint: str | None = None,
    workers: int | None = None,
    commit_seconds: float = 10.0,
) -> bool:
    """Write the shards of `text` to the folder `output`; return whether they were not there already.

    The work is done in `output` + '.partial'. Killed at any time, the next call goes on from the last commit, and the
    result is the same byte for byte. A second process waits for the first.

    Args:
        text: what is read, and how it is cleaned.
        tokenizer: a byte-level BPE as `vocabulary.learn` and `vocabulary.load` return it.
        output: the folder to make.
        fingerprint: `text`'s, where the caller knows it.
        workers: number of other processes to encode in; None: as many as are of use.
        commit_seconds: how much work a kill may cost.

    Raises:
        UserError: the text cannot be read, one side of the split is empty, or `output` holds something else.
        OSError: the disk is full or not writable.

    """
    start = State(tokenizer_sha256=vocabulary.sha256(tokenizer), text_fingerprint=fingerprint or text.fingerprint())
    if _is_built(output, start):
        return False
    output = output.resolve()
    folder = output.with_name(f"{output.name}.partial")
    with partial.locked(folder):
        if _is_built(output, start):  # by the process that had the lock before this one
            folder.rmdir()
            return False
        try:
            with partial.opened(folder, start) as (database, state):
                encoders = Workers(tokenizer, default_workers() if workers is None else workers)
                with closing(encoders), closing(_Filling(text, folder, database, state, encoders)) as filling:
                    filling.run(commit_seconds)
            _check_sides(filling.state)
            seal(folder, text, tokenizer, filling.state)
        except UserError:
            shutil.rmtree(folder)
            raise
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, f"cannot write ({error})", str(folder)) from None
        partial.finish(folder, output)
    return True


class _Filling:
    """A folder that is being filled: text read, cleaned, encoded and written, a batch at a time."""

    def __init__(self, text: Text, folder: Path, database: sqlite3.Connection, state: State, encoders: Workers) -> None:
        self.state = state
        self._text, self._database, self._encoders = text, database, encoders
        self._cleaner = Cleaner(text, Seen(database), Counter(state.dropped))
        self._open = ExitStack()
        self._writers = {
            side: self._open.enter_context(closing(SideWriter(folder, side, encoders.token_type, counts)))
            for side, counts in state.counts.items()
        }
        self._batches = {side: Batch() for side in SIDES}
        self._submitted: deque[tuple[Side, Batch, Future[Encoded]]] = deque()

    def close(self) -> None:
        self._open.close()

    def run(self, commit_seconds: float) -> None:
        """Write every document that the state does not hold yet."""
        consumed, characters, committed = self.state.consumed_documents, 0, time.monotonic()
        documents = itertools.islice(self._text.source.documents(), consumed, None)
        for document in tqdm(documents, "shards", initial=consumed, unit=" documents", disable=None):
            consumed += 1
            passage = self._cleaner.clean(document)
            if passage is not None:
                self._batches[passage.side].add(passage.sentences)
            characters += len(document.text)
            if characters > _BATCH_CHARACTERS:
                characters = 0
                self._submit()
                if time.monotonic() - committed > commit_seconds:
                    self._commit(consumed)
                    committed = time.monotonic()
        self._submit()
        self._commit(consumed)

    def _submit(self) -> None:
        """Have what was read encoded, and write what is done; only a few batches are under way at any time."""
        for side, batch in self._batches.items():
            if batch.sentences:
                self._submitted.append((side, batch, self._encoders.submit(batch.sentences)))
                self._batches[side] = Batch()
        self._write(left=2 * len(SIDES) * self._encoders.count)

    def _write(self, left: int) -> None:
        """Write batches in their order until at most `left` are under way."""
        while len(self._submitted) > left:
            side, batch, encoded = self._submitted.popleft()
            self._writers[side].write(batch, encoded.result())

    def _commit(self, consumed: int) -> None:
        self._write(left=0)
        for writer in self._writers.values():
            writer.sync()
        changes = {
            "consumed_documents": consumed,
            "counts": {side: writer.counts for side, writer in self._writers.items()},
            "dropped": dict(self._cleaner.dropped),
        }
        self.state = self.state.model_copy(update=changes)
        partial.commit(self._database, self.state)
        if not sys.stderr.isatty():
            print(f"shards: {consumed:,} documents", file=sys.stderr)


def _check_sides(state: State) -> None:
    total = sum(counts.documents for counts in state.counts.values())
    if not total:
        raise UserError("the text is empty: after cleaning, no sentence of it is left: name another source")
    for side, counts in state.counts.items():
        if not counts.documents:
            raise UserError(
                f"all {total:,} documents fell to one side of the held-out split, none to {side}: "
                "change text.heldout_share, or add text"
            )


def _is_built(output: Path, start: State) -> bool:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / shards.MANIFEST).exists():
        raise UserError(f"{output} is there already, and holds no token shards: name another folder")
    if shards.read_manifest(output).inputs != start.inputs:
        raise UserError(f"{output} holds the shards of another text or tokenizer: name another folder, or remove it")
    return True
