"""Build token shards from text: streaming, in flat memory, resumable after a kill."""

import errno
import itertools
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from configs import UserError, streams
from tokenizer import cleaning, vocabulary
from tokenizer.cached_encoder import CachedEncoder, Encoded
from tokenizer.cleaning import SeenHashes, SentenceTable, Side, TextConfig
from tokenizer.shards import format
from tokenizer.shards.workers import Workers, default_workers
from tokenizer.shards.writer import BuildState, ShardWriter, clear, finish, locked, opened
from tokenizer.sources import Document
from tokenizer.sources.files import UnreachableError, Watch

Columns = tuple[tuple[Any, ...], ...]
"""The fields of several documents, each together: less to pickle than a tuple for every document."""
_WORTH_A_PROCESS = 4
"""Batches that take hardly longer than the start of a process does."""
NO_HASHES = np.empty(0, f"V{cleaning.HASH_BYTES}")
EncodedBatch = tuple[SentenceTable, Encoded]
"""Documents split into sentences, and the tokens of all sentences, duplicates included."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The course of a build; none of it changes the shards."""

    workers: int | None = None
    """Number of other processes that encode; None: as many as pay on this machine."""
    commit_seconds: float = 10.0
    """Seconds of work that a kill may cost."""
    batch_characters: int = cleaning.BATCH_CHARACTERS
    """Characters of the documents that are cleaned and encoded together."""


def build(
    text: TextConfig,
    tokenizer: Tokenizer,
    output: Path,
    *,
    fingerprint: str = "",
    watch: Watch | None = None,
    options: BuildOptions | None = None,
    repeated: NDArray[np.void] = NO_HASHES,
) -> bool:
    """Write the shards of `text` to the folder `output`; return False if they were there already.

    The files grow in `output` + '.partial'. After a kill at any time the next call resumes from the last commit, and
    the result is the same byte for byte. So it does where the text could not be read for a while. A second process
    waits for the first.

    `tokenizer` is one that `vocabulary.learn` or `vocabulary.load` returns, and `fingerprint` that of
    `text`, where the caller has it, with a `watch` over the text that began before. Texts whose hashes are `repeated`
    are dropped like those that repeat an earlier one; then `fingerprint` must tell so. A text that cannot be read or
    changes meanwhile, an empty side of the split, and an `output` that holds something else are UserErrors.
    """
    watch = watch or text.source.watch()
    fingerprint = fingerprint or text.fingerprint()
    if is_built(output, tokenizer, fingerprint):
        return False
    start = _start(tokenizer, fingerprint)
    output = output.resolve()
    folder = output.with_name(f"{output.name}.partial")
    with locked(folder):
        if is_built(output, tokenizer, fingerprint):  # by the process that had the lock before this one
            folder.rmdir()
            return False
        committed = 0
        try:
            with watch, opened(folder, start, format.token_type(tokenizer.get_vocab_size())) as writer:
                writer.see(repeated)
                try:
                    _fill(writer, text, tokenizer, options or BuildOptions(), watch)
                except UnreachableError:
                    committed = writer.state.consumed_documents
                    raise
            _check_sides(writer.state)
            finish(folder, output, text, tokenizer, writer.state)
        except UserError:
            if not committed:
                clear(folder)
                folder.rmdir()
            raise
        except sqlite3.OperationalError as error:
            raise OSError(errno.ENOSPC, f"cannot write ({error})", str(folder)) from error
    return True


def is_built(output: Path, tokenizer: Tokenizer, fingerprint: str) -> bool:
    """Return True if the folder holds the shards of the text already; a UserError says that it holds something else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / format.MANIFEST).exists():
        raise UserError(f"{output} exists and holds no token shards: name another folder")
    if not _start(tokenizer, fingerprint).has_inputs_of(format.read_manifest(output)):
        raise UserError(f"{output} holds the shards of another text or tokenizer: name another folder, or remove it")
    return True


def _start(tokenizer: Tokenizer, fingerprint: str) -> BuildState:
    return BuildState(
        tokenizer_sha256=vocabulary.sha256(tokenizer),
        text_fingerprint=cleaning.fingerprint_as_read(fingerprint, tokenizer.normalizer),
    )


def _fill(writer: ShardWriter, text: TextConfig, tokenizer: Tokenizer, options: BuildOptions, watch: Watch) -> None:
    """Read, clean, encode and write all documents that the writer's state does not hold yet, batch by batch."""
    seen, dropped = SeenHashes(writer.database), Counter(writer.state.dropped)
    submitted: deque[Future[EncodedBatch]] = deque()

    def write(most_left: int) -> None:
        """Write batches in their order until at most `most_left` are under way."""
        while len(submitted) > most_left:
            table, encoded = submitted.popleft().result()
            kept = cleaning.drop_duplicates(table, text, seen, dropped)
            kept = cleaning.drop_beyond(table, text, kept, writer.counts["train"].words, dropped)
            for side in format.SIDES:
                _write(writer, side, table, encoded, kept & (table.heldout == (side == "heldout")))

    at_sentences = cleaning.fall_to_one_side(text, cleaning.as_read_by(tokenizer.normalizer))
    writer.state = writer.state.model_copy(update={"split_at_sentences": at_sentences})
    consumed, committed = writer.state.consumed_documents, time.monotonic()
    remaining = itertools.islice(text.documents(), consumed, None)
    shown = streams.messages()
    documents = tqdm(remaining, "shards", initial=consumed, unit=" documents", disable=None, file=shown)
    count = default_workers() if options.workers is None else options.workers
    start = partial(start_encoding, text, tokenizer.to_str(), at_sentences)
    batches = cleaning.batch_documents(documents, options.batch_characters)
    first = list(itertools.islice(batches, _WORTH_A_PROCESS))
    with closing(Workers(start, count if len(first) == _WORTH_A_PROCESS else 0)) as workers:
        for batch in itertools.chain(first, batches):
            submitted.append(workers.submit(tuple(zip(*batch, strict=True))))
            write(most_left=workers.most_left)
            consumed += len(batch)
            if time.monotonic() - committed > options.commit_seconds:
                write(most_left=0)
                watch.check()  # a later build would resume from text that is gone
                writer.commit(consumed, +dropped)
                committed = time.monotonic()
        write(most_left=0)
    watch.check()
    writer.commit(consumed, +dropped)  # without zeros


def start_encoding(text: TextConfig, tokenizer: str, at_sentences: bool) -> Callable[[Columns], EncodedBatch]:
    """Return the function that splits documents into sentences and encodes these, in their order."""
    encoder = CachedEncoder(Tokenizer.from_str(tokenizer))
    as_read = cleaning.as_read_by(encoder.normalizer)  # equal texts are those that are read alike

    def encode(columns: Columns) -> EncodedBatch:
        documents = list(map(Document, *columns))
        sentences, table = cleaning.split_documents(text, documents, as_read, at_sentences=at_sentences)
        begins = np.full(len(sentences), text.segments == "sentences")
        begins[(table.lengths.cumsum() - table.lengths)[table.lengths > 0]] = True
        return table, encoder.encode(sentences, begins)

    return encode


def _write(writer: ShardWriter, side: Side, table: SentenceTable, encoded: Encoded, kept: NDArray[np.bool_]) -> None:
    """Append the kept sentences, which are all of one side."""
    tokens = np.repeat(kept, encoded.lengths)
    document_lengths = cleaning.kept_lengths(table, kept)
    selected = Encoded(encoded.tokens[tokens], encoded.word_starts[tokens], encoded.lengths[kept])
    counts = format.Counts(
        documents=len(document_lengths),
        sentences=len(selected.lengths),
        words=int(table.words[kept].sum()),
        tokens=len(selected.tokens),
        text_bytes=int(table.text_bytes[kept].sum()),
    )
    writer.write(side, selected, document_lengths, counts)


def _check_sides(state: BuildState) -> None:
    total = sum(counts.documents for counts in state.counts.values())
    if not total:
        raise UserError("the text is empty, or cleaning drops all of it: name another source, or clean less")
    for side, counts in state.counts.items():
        if not counts.documents:
            raise UserError(
                f"all text fell to one side of the held-out split, none to {side}: it takes several sentences that "
                f"differ ({total:,} documents): add text, or change text.heldout_share, train_share or most_words"
            )
