"""Make the shards of a long text in parts, a folder each, by tasks that may run anywhere.

The division depends on the text alone. Repetitions are found across the parts in two passes before the shards are
built: each part's hashes are written in order, then each range of hashes tells the parts that repeat an earlier one.
All that the tasks share are files.
"""

import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from configs import UserError, files
from configs.files import PARTIAL
from tokenizer import cleaning, vocabulary
from tokenizer.cleaning import TextConfig
from tokenizer.shards import format, rows
from tokenizer.shards.build import NO_HASHES, BuildOptions, build, is_built
from tokenizer.shards.format import open_shards
from tokenizer.sources import Files, hash_texts
from tokenizer.sources.files import Watch
from tokenizer.special_tokens import SpecialTokens

logger = logging.getLogger(__name__)

PART_BYTES = 256_000_000
"""Size of the files of a part, about."""
_WORKING, _REPEATS = "working-", ".repeats-"
_HASHES_AT_ONCE = 1 << 22
"""Hashes of a range, about: some 200 MB while they are compared."""
Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Engine(Protocol):
    """Runs tasks, anywhere and in any order."""

    def __call__(self, task: Callable[[Request], Answer], requests: Sequence[Request]) -> list[Answer]:
        """Return the answer to each request; both and `task` must be picklable."""


@dataclass(frozen=True)
class _Part:
    """One part of a text, as its tasks get it."""

    number: int
    text: TextConfig
    working: Path
    """Folder of the files that the tasks exchange."""
    row_lengths: tuple[int, ...]
    own_fingerprint: str = ""
    """That of its text."""
    fingerprint: str = ""
    """That of its shards: of its text and of the parts before it, whose repetitions it lacks."""

    @property
    def folder(self) -> Path:
        """The folder of its shards."""
        return self.working.with_name(f"part-{self.number:05}")

    @property
    def hashes(self) -> Path:
        """The file of its hashes, in order: the first halves of all, then the second halves."""
        return self.working / f"{self.fingerprint}.hashes"

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return vocabulary.load(self.working / format.TOKENIZER)

    def watch(self) -> Watch:
        """Return a watch over the text, which must be as it was when the build began."""
        watch = self.text.source.watch()
        if self.text.fingerprint() != self.own_fingerprint:
            raise UserError("the text changed since the build began: wait until it is complete")
        return watch


@dataclass(frozen=True)
class _Range:
    """One of the `count` ranges of all hashes."""

    number: int
    count: int
    hashes: tuple[Path, ...]
    """The hashes of each part."""

    @property
    def repeats(self) -> Path:
        """The file of the hashes that earlier parts have: the numbers of the parts, in order, and both halves."""
        return self.hashes[-1].with_suffix(f"{_REPEATS}{self.number}")


def build_parts(
    text: TextConfig,
    tokenizer: Tokenizer,
    output: Path,
    engine: Engine,
    *,
    part_bytes: int = PART_BYTES,
    row_lengths: tuple[int, ...] = (),
) -> tuple[list[Path], bool]:
    """Write the shards of each part of the text into a folder in `output`, with rows of the lengths given.

    Return the folders, and False if all were there already. Together they hold the documents of a single folder, in
    their order. After a kill at any time the next call makes what is missing, and the result is the same byte for byte.
    The errors are those of `build`.
    """
    sources = text.source.parts(part_bytes) if isinstance(text.source, Files) else [text.source]
    texts = [text.model_copy(update={"source": source}) for source in sources]
    output = output.resolve()
    _check(output, len(texts))
    output.mkdir(parents=True, exist_ok=True)
    working = output / f"{_WORKING}{vocabulary.sha256(tokenizer):.16}"
    with _locked(output):
        working.mkdir(exist_ok=True)
        try:
            with files.written(working / format.TOKENIZER) as file:
                file.write_bytes(vocabulary.serialize(tokenizer))
            parts = [_Part(number, one, working, row_lengths) for number, one in enumerate(texts)]
            folders, built = _make_missing(parts, tokenizer, engine)
        except UserError:
            shutil.rmtree(working, ignore_errors=True)
            raise
        for folder in output.glob(f"{_WORKING}*"):
            shutil.rmtree(folder)
    return folders, built


def _make_missing(parts: Sequence[_Part], tokenizer: Tokenizer, engine: Engine) -> tuple[list[Path], bool]:
    own = engine(_fingerprint, parts)
    working = parts[0].working
    fingerprint, finished = hash_texts(working.name, *own), working.with_name(format.PARTS)
    parts = _identified(parts, own)
    expected = _expected(parts, finished, fingerprint)
    unbuilt = {part.number for part in expected if not is_built(part.folder, tokenizer, part.fingerprint)}
    if unbuilt and parts[0].text.deduplicate != "none":
        _find_repeats(parts, engine)
    unfinished = [part for part in expected if part.number in unbuilt or _lacks_rows(part, tokenizer)]
    if not unfinished and finished.exists():
        return [part.folder for part in expected], False
    made = zip(unfinished, engine(_make, unfinished), strict=True)
    repeated = {part.number for part, is_made in made if not is_made}
    folders = [part.folder for part in expected if part.number not in repeated]
    for folder in folders:
        if not (folder / format.MANIFEST).exists():
            raise UserError(f"{folder} was made on another machine: name an output on a file system that all share")
    with files.written(finished) as file:
        done = format.PartList(fingerprint=fingerprint, folders=tuple(folder.name for folder in folders))
        file.write_text(done.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return folders, True


def _check(output: Path, count: int) -> None:
    """Raise a UserError if the folder holds anything but up to `count` parts."""
    known = re.compile(rf"part-(?P<number>\d{{5,}})(\{PARTIAL})?|{_WORKING}.*|\.?{re.escape(format.PARTS)}.*")
    if not output.exists():
        return
    for path in sorted(output.iterdir()) if output.is_dir() else [output]:
        found = known.fullmatch(path.name)
        if found is None:
            raise UserError(f"{output} exists and holds no parts of shards ({path.name}): name another folder")
        if found["number"] and int(found["number"]) >= count:
            raise _foreign(output)


def _foreign(output: Path) -> UserError:
    return UserError(
        f"{output} holds the shards of another text or tokenizer, or of parts of another size: "
        "name another folder, or remove it"
    )


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Hold the lock of `output`; wait for another holder."""
    descriptor = os.open(output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.lock(descriptor, output, wait=True)
        yield
    finally:
        os.close(descriptor)


def _identified(parts: Sequence[_Part], own: Sequence[str]) -> list[_Part]:
    """Return the parts with their fingerprints."""
    chain, found = "", []
    for part, fingerprint in zip(parts, own, strict=True):
        chain = hash_texts(chain, fingerprint)
        found.append(replace(part, own_fingerprint=fingerprint, fingerprint=chain))
    return found


def _expected(parts: Sequence[_Part], path: Path, fingerprint: str) -> Sequence[_Part]:
    """Return the parts that have shards, as far as a list of the finished ones tells; one of others is a UserError."""
    if not path.exists():
        return parts
    known = format.read_parts(path)
    if known.fingerprint != fingerprint:
        raise _foreign(path.parent)
    return [part for part in parts if part.folder.name in known.folders]


def _find_repeats(parts: Sequence[_Part], engine: Engine) -> None:
    engine(_write_hashes, parts)
    hashes = tuple(part.hashes for part in parts)
    count = 1 + sum(path.stat().st_size for path in hashes) // (cleaning.HASH_BYTES * _HASHES_AT_ONCE)
    ranges = [_Range(number, count, hashes) for number in range(count)]
    for former in set(parts[0].working.glob(f"*{_REPEATS}*")) - {one.repeats for one in ranges}:
        former.unlink()  # of a build that was stopped, of a text that has changed since
    engine(_write_repeats, ranges)


def _lacks_rows(part: _Part, tokenizer: Tokenizer) -> bool:
    return bool(rows.missing(open_shards(part.folder), part.row_lengths, SpecialTokens.of(tokenizer)))


def _fingerprint(part: _Part) -> str:
    return part.text.fingerprint()


def _write_hashes(part: _Part) -> None:
    """Write the hashes of the texts among which repetitions are dropped, in order and each once."""
    if part.hashes.exists():
        return
    text, watch = part.text, part.watch()
    if text.deduplicate == "documents":  # whose sentences are not needed
        text = text.model_copy(update={"split_sentences": False, "minimum_words": 0, "maximum_words": None})
    as_read = cleaning.as_read_by(part.tokenizer().normalizer)
    with watch:
        batches = cleaning.batch_documents(text.documents())
        tables = (cleaning.split_documents(text, batch, as_read)[1] for batch in batches)
        found = b"".join(itertools.chain.from_iterable(table.hashes for table in tables))
    halves = np.frombuffer(found, ">u8").reshape(-1, 2).T.astype("<u8")
    halves, is_first = _in_order(halves)
    with files.written(part.hashes) as path:
        halves[:, is_first].tofile(path)


def _in_order(halves: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return columns ordered by their last two values, equal ones as they were, and True for the first of equals."""
    halves = halves[:, np.lexsort((halves[-1], halves[-2]))]
    differ = (np.diff(halves[-2:].astype(np.uint64), axis=1) != 0).any(axis=0)
    return halves, np.concatenate([np.ones(min(1, halves.shape[1]), np.bool_), differ])


def _columns(path: Path, count: int) -> NDArray[np.uint64]:
    """Return the numbers in a file, in so many rows, memory-mapped."""
    if not path.stat().st_size:
        return np.empty((count, 0), "<u8")
    return np.asarray(np.memmap(path, "<u8", "r")).reshape(count, -1)


def _write_repeats(one: _Range) -> None:
    """Write the hashes of a range that the parts share with earlier ones."""
    if one.repeats.exists():
        return
    found = []
    for number, path in enumerate(one.hashes):
        halves = _columns(path, 2)
        first, last = (((one.number + after) << 64) // one.count - after for after in (0, 1))
        start, end = np.searchsorted(halves[0], np.uint64(first)), np.searchsorted(halves[0], np.uint64(last), "right")
        found.append(np.vstack([np.full(end - start, number, "<u8"), halves[:, start:end]]))
    numbered, is_first = _in_order(np.concatenate(found, axis=1))
    repeats = numbered[:, ~is_first]
    with files.written(one.repeats) as path:
        repeats[:, np.argsort(repeats[0], kind="stable")].tofile(path)


def _repeats(part: _Part) -> NDArray[np.void]:
    """Return the hashes of the part that earlier parts have."""
    found = []
    for path in sorted(part.working.glob(f"*{_REPEATS}*")):
        numbered = _columns(path, 3)
        first, end = (np.searchsorted(numbered[0], np.uint64(number)) for number in (part.number, part.number + 1))
        found.append(numbered[1:, first:end])
    halves = np.concatenate(found, axis=1)
    return np.frombuffer(halves.T.astype(">u8").tobytes(), NO_HASHES.dtype)


def _make(part: _Part) -> bool:
    """Build the shards of a part and pack their rows, unless they are there; return False if all of it is repeated."""
    tokenizer = part.tokenizer()
    try:
        if not is_built(part.folder, tokenizer, part.fingerprint):
            watch, repeated = part.watch(), NO_HASHES
            if part.text.deduplicate != "none":
                repeated = _repeats(part)
                if len(repeated) == part.hashes.stat().st_size // cleaning.HASH_BYTES > 0:
                    return False
            alone = BuildOptions(workers=0)  # other parts are made beside it
            build(
                part.text,
                tokenizer,
                part.folder,
                fingerprint=part.fingerprint,
                watch=watch,
                options=alone,
                repeated=repeated,
            )
        rows.write_beside(open_shards(part.folder), part.row_lengths, SpecialTokens.of(tokenizer), workers=0)
    except UserError as error:
        raise UserError(f"{part.folder}: {error}") from error
    return True
