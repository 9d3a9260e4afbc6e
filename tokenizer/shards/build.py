"""Build token shards from text: streaming, in flat memory, and going on where a killed build was."""

import errno
import itertools
import shutil
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from configs import UserError
from tokenizer import vocabulary
from tokenizer.cached_encoder import Encoded
from tokenizer.cleaning import REASONS, SeenHashes, Text, batches, choose, kept_lengths
from tokenizer.shards import format, partial
from tokenizer.shards.cutter import EncodedBatch
from tokenizer.shards.format import SIDES, Counts
from tokenizer.shards.partial import BuildState
from tokenizer.shards.parts import UNITS, WHOLE, Journal, Part
from tokenizer.shards.workers import Workers, default_workers
from tokenizer.shards.writer import ShardWriter, seal


def build(
    text: Text,
    tokenizer: Tokenizer,
    output: Path,
    *,
    part: Part | None = None,
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
        part: make the part's folder instead, for `merge`.
        fingerprint: `text`'s, where the caller knows it.
        workers: number of other processes to cut and encode in; None: as many as are of use.
        commit_seconds: how much work a kill may cost.

    Raises:
        UserError: the text cannot be read, one side of the split is empty, or `output` holds something else.
        OSError: the disk is full or not writable.

    """
    start = run_identity(text, tokenizer, fingerprint)
    if part is not None:
        is_built(output, start)  # what would be in the way of the merge is said now
        output = part.folder(output)
        start = start.model_copy(update={"text_fingerprint": part.fingerprint(start.text_fingerprint)})

    def fill(growing: ShardWriter) -> None:
        cutters = Workers(text, tokenizer, default_workers() if workers is None else workers)
        with closing(cutters), closing(_Filling(text, growing, cutters, part)) as filling:
            filling.run(commit_seconds)

    return make(text, tokenizer, output, start, fill, is_part=part is not None)


def run_identity(text: Text, tokenizer: Tokenizer, fingerprint: str | None = None) -> BuildState:
    """Return the state of a build at its start.

    Raises:
        UserError: the text cannot be read.

    """
    return BuildState(tokenizer_sha256=vocabulary.sha256(tokenizer), text_fingerprint=fingerprint or text.fingerprint())


def make(
    text: Text,
    tokenizer: Tokenizer,
    output: Path,
    start: BuildState,
    fill: Callable[[ShardWriter], None],
    *,
    is_part: bool = False,
) -> bool:
    """Have `fill` write the folder `output`, or go on where it was killed; return whether it was not there already.

    Raises:
        UserError: of `fill`; one side of the split is empty, and it is no part; or `output` holds something else.
        OSError: the disk is full or not writable.

    """
    if is_built(output, start):
        return False
    output = output.resolve()
    folder = output.with_name(f"{output.name}.partial")
    token_type = format.token_type(tokenizer.get_vocab_size())
    with partial.locked(folder):
        if is_built(output, start):  # by the process that had the lock before this one
            folder.rmdir()
            return False
        try:
            with (
                partial.opened(folder, start) as (database, state),
                closing(ShardWriter(folder, database, state, token_type)) as growing,
            ):
                fill(growing)
            if not is_part:
                _check_sides(growing.state)
            seal(folder, text, tokenizer, growing.state, [UNITS] if is_part else [])
        except UserError:
            shutil.rmtree(folder)
            raise
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, f"cannot write ({error})", str(folder)) from None
        partial.finish(folder, output)
    return True


def is_built(output: Path, start: BuildState) -> bool:
    """Return whether the folder holds the shards already.

    Raises:
        UserError: it holds something else.

    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / format.MANIFEST).exists():
        raise UserError(f"{output} is there already, and holds no token shards: name another folder")
    if format.read_manifest(output).inputs != start.inputs:
        raise UserError(f"{output} holds the shards of another text or tokenizer: name another folder, or remove it")
    return True


class _Filling:
    """A folder that is being filled: text read, cut, encoded, freed of duplicates and written, a batch at a time."""

    def __init__(self, text: Text, growing: ShardWriter, cutters: Workers, part: Part | None) -> None:
        self._text, self._growing, self._cutters = text, growing, cutters
        self._part = part or WHOLE
        self._journal = Journal(text, growing) if part else None
        self._seen, self._dropped = SeenHashes(growing.database), Counter(growing.state.dropped)
        self._submitted: deque[tuple[range, Future[EncodedBatch]]] = deque()

    def close(self) -> None:
        if self._journal:
            self._journal.close()

    def run(self, commit_seconds: float) -> None:
        """Write every document that the state does not hold yet."""
        consumed, committed = self._growing.state.consumed_documents, time.monotonic()
        count, place = self._part.count, self._part.first_place(consumed)
        dealt = itertools.islice(self._text.source.documents(), place, None, count)
        for batch in batches(tqdm(dealt, "shards", initial=consumed // count, unit=" documents", disable=None)):
            places = range(place, place + count * len(batch), count)
            self._submitted.append((places, self._cutters.submit(batch)))
            self._write(left=2 * self._cutters.count)
            place, consumed = places.stop, places[-1] + 1
            if time.monotonic() - committed > commit_seconds:
                self._commit(consumed)
                committed = time.monotonic()
        self._commit(consumed)

    def _write(self, left: int) -> None:
        """Write batches in their order until at most `left` are under way."""
        while len(self._submitted) > left:
            places, promised = self._submitted.popleft()
            work = promised.result()
            stays, left_out = choose(work.cuts, self._text, self._seen)
            for reason, number in zip(REASONS, left_out.sum(axis=0).tolist(), strict=True):
                if number:
                    self._dropped[reason] += number
            if self._journal:
                self._journal.note(places, work, stays, left_out)
            for side in SIDES:
                self._growing.writers[side].write(*_of_side(work, stays, heldout=side == "heldout"))

    def _commit(self, consumed: int) -> None:
        self._write(left=0)
        units = 0
        if self._journal:
            self._journal.sync()
            units = self._journal.units
        self._growing.commit(consumed, self._dropped, units)


def _of_side(
    work: EncodedBatch, stays: NDArray[np.bool_], *, heldout: bool
) -> tuple[Encoded, NDArray[np.int64], Counts]:
    """Return what `SideWriter.write` takes: the sentences that stay of the documents on one side."""
    cuts, encoded = work.cuts, work.encoded
    stays = stays & np.repeat(cuts.heldout == heldout, cuts.lengths)
    tokens = np.repeat(stays, encoded.lengths)
    document_lengths = kept_lengths(cuts, stays)
    document_lengths = document_lengths[document_lengths > 0]
    chosen = Encoded(encoded.tokens[tokens], encoded.word_starts[tokens], encoded.lengths[stays])
    counts = Counts(
        documents=len(document_lengths),
        sentences=len(chosen.lengths),
        words=int(work.words[stays].sum()),
        tokens=len(chosen.tokens),
        text_bytes=int(work.text_bytes[stays].sum()),
    )
    return chosen, document_lengths, counts


def _check_sides(state: BuildState) -> None:
    total = sum(counts.documents for counts in state.counts.values())
    if not total:
        raise UserError("the text is empty: after cleaning, no sentence of it is left: name another source")
    for side, counts in state.counts.items():
        if not counts.documents:
            raise UserError(
                f"all {total:,} documents fell to one side of the held-out split, none to {side}: "
                "change text.heldout_share, or add text"
            )
