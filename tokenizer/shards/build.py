"""Build token shards from text: streaming, in flat memory, and going on where a killed build was."""

import errno
import itertools
import shutil
import sqlite3
import time
from collections import Counter, deque
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
from tokenizer.shards.workers import Workers, default_workers
from tokenizer.shards.writer import ShardWriter, seal


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
        workers: number of other processes to cut and encode in; None: as many as are of use.
        commit_seconds: how much work a kill may cost.

    Raises:
        UserError: the text cannot be read, one side of the split is empty, or `output` holds something else.
        OSError: the disk is full or not writable.

    """
    start = BuildState(
        tokenizer_sha256=vocabulary.sha256(tokenizer), text_fingerprint=fingerprint or text.fingerprint()
    )
    if _is_built(output, start):
        return False
    output = output.resolve()
    folder = output.with_name(f"{output.name}.partial")
    with partial.locked(folder):
        if _is_built(output, start):  # by the process that had the lock before this one
            folder.rmdir()
            return False
        try:
            with (
                partial.opened(folder, start) as (database, state),
                closing(ShardWriter(folder, database, state, format.token_type(tokenizer.get_vocab_size()))) as writer,
            ):
                _fill(writer, text, tokenizer, default_workers() if workers is None else workers, commit_seconds)
            _check_sides(writer.state)
            seal(folder, text, tokenizer, writer.state)
        except UserError:
            shutil.rmtree(folder)
            raise
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, f"cannot write ({error})", str(folder)) from None
        partial.finish(folder, output)
    return True


def _is_built(output: Path, start: BuildState) -> bool:
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


def _fill(writer: ShardWriter, text: Text, tokenizer: Tokenizer, workers: int, commit_seconds: float) -> None:
    """Read, clean, encode and write every document that the writer's state does not hold yet, a batch at a time."""
    seen, dropped = SeenHashes(writer.database), Counter(writer.state.dropped)
    submitted: deque[Future[EncodedBatch]] = deque()

    def write(most_left: int) -> None:
        """Write batches in their order until at most `most_left` are under way."""
        while len(submitted) > most_left:
            batch = submitted.popleft().result()
            stays, left_out = choose(batch.cuts, text, seen)
            for reason, number in zip(REASONS, left_out.sum(axis=0).tolist(), strict=True):
                if number:
                    dropped[reason] += number
            for side in SIDES:
                writer.writers[side].write(*_of_side(batch, stays, heldout=side == "heldout"))

    consumed, committed = writer.state.consumed_documents, time.monotonic()
    documents = itertools.islice(text.source.documents(), consumed, None)
    with closing(Workers(text, tokenizer, workers)) as encoders:
        for batch in batches(tqdm(documents, "shards", initial=consumed, unit=" documents", disable=None)):
            submitted.append(encoders.submit(batch))
            write(most_left=2 * encoders.count)
            consumed += len(batch)
            if time.monotonic() - committed > commit_seconds:
                write(most_left=0)
                writer.commit(consumed, dropped)
                committed = time.monotonic()
        write(most_left=0)
    writer.commit(consumed, dropped)


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
