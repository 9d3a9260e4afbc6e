"""Merge the finished parts of shards: the same bytes as if one process had read, cleaned and encoded all the text."""

import re
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from configs import UserError
from tokenizer.cached_encoder import Encoded
from tokenizer.cleaning import REASONS, Reason, SeenHashes, Side, Text
from tokenizer.shards import format
from tokenizer.shards.build import is_built, make, run_identity
from tokenizer.shards.format import SIDES, Counts, Shards
from tokenizer.shards.partial import BuildState
from tokenizer.shards.parts import UNIT, UNITS, Part
from tokenizer.shards.writer import ShardWriter

_ROUND_BYTES = 4_000_000
_ROUND_UNITS = 100_000
"""What is merged at a time, from all parts together; more only of a longer document."""
_DUPLICATE: dict[str, Reason] = {"documents": "duplicate documents", "sentences": "duplicate sentences"}


def merge(text: Text, tokenizer: Tokenizer, output: Path, count: int, *, commit_seconds: float = 10.0) -> bool:
    """Write the shards of `text` to the folder `output` out of its parts; return whether they were not there already.

    The parts stay. Killed at any time, the next call goes on from the last commit, and so would `build`.

    Args:
        text: what the parts were built from.
        tokenizer: likewise.
        output: the folder to make; its parts lie beside it, where `build` made them.
        count: how many parts there are.
        commit_seconds: how much work a kill may cost.

    Raises:
        UserError: a part is missing, unfinished, damaged or of something else; what `build` raises of the whole.
        OSError: the disk is full or not writable.

    """
    start = run_identity(text, tokenizer)
    if is_built(output, start):
        return False
    parts = [Part(number, count) for number in range(1, count + 1)]
    _check_finished(parts, output)
    opened = [_opened(part, part.folder(output), start) for part in parts]

    def fill(growing: ShardWriter) -> None:
        _Merging(text, growing, opened).run(commit_seconds)

    return make(text, tokenizer, output, start, fill)


def _check_finished(parts: Sequence[Part], output: Path) -> None:
    missing = [part for part in parts if not (part.folder(output) / format.MANIFEST).exists()]
    if not missing:
        return
    folder = missing[0].folder(output)
    state = "unfinished" if folder.with_name(f"{folder.name}.partial").exists() else "missing"
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    names = [path.name for path in folder.parent.iterdir()] if folder.parent.exists() else []
    there = ", ".join(
        sorted(name for name in names if re.fullmatch(rf"{re.escape(output.resolve().name)}\.part-\d+-of-\d+", name))
    )
    raise UserError(
        f"part {missing[0]}{more} is {state}: {folder} is to hold it: build it with --part {missing[0]}, or copy it "
        f"there; finished parts there are: {there or 'none'}"
    )


def _opened(part: Part, folder: Path, whole: BuildState) -> Shards:
    if format.read_manifest(folder).inputs != (whole.tokenizer_sha256, part.fingerprint(whole.text_fingerprint)):
        raise UserError(
            f"{folder} is no part {part} of this text, tokenizer and settings: "
            f"give what it was built from, or remove it and build it again with --part {part}"
        )
    return format.open_shards(folder, also=[UNITS])


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive units of one part, and the sentences of one side or the other that belong to them."""

    units: NDArray[Any]
    encoded: dict[Side, Encoded]


class _Reader:
    """One part, read from its beginning to its end."""

    def __init__(self, part: Shards) -> None:
        self._part = part
        size_bytes = part.manifest.files[UNITS].size_bytes
        self._units = format.map_file(part.path / UNITS, UNIT, size_bytes // UNIT.itemsize)
        self._places = self._units["place"]
        self._next = 0
        self._next_sentence = dict.fromkeys(SIDES, 0)

    def end(self, limit_bytes: int, limit_units: int) -> int:
        """Return the place before which the next units are within the limits, or those of one document at least."""
        ahead = self._units[self._next : self._next + limit_units]
        fits = int(np.searchsorted(np.cumsum(ahead["text_bytes"]), limit_bytes, "right"))
        if self._next + fits == len(self._units):
            return sys.maxsize
        return max(int(self._places[self._next + fits]), int(self._places[self._next]) + 1)

    def skip(self, end: int) -> None:
        """Go past the units of documents before the place `end`."""
        last = bisect_left(self._places, end, lo=self._next)
        while self._next < last:
            self._advance(self._units[self._next : min(last, self._next + _ROUND_UNITS)])

    def take(self, end: int) -> _Piece:
        """Return the units of documents before the place `end`, and go past them."""
        before = dict(self._next_sentence)
        units = self._units[self._next : bisect_left(self._places, end, lo=self._next)]
        self._advance(units)
        return _Piece(units, {side: self._encoded(side, before[side]) for side in SIDES})

    def _advance(self, units: NDArray[Any]) -> None:
        self._next += len(units)
        for index, side in enumerate(SIDES):
            self._next_sentence[side] += int(units["sentences"][units["side"] == index].sum())

    def _encoded(self, side: Side, first: int) -> Encoded:
        """Return the side's sentences from the `first` to those taken last."""
        split = getattr(self._part, side)
        offsets = split.sentences[first : self._next_sentence[side] + 1]
        tokens = slice(int(offsets[0]), int(offsets[-1]))
        return Encoded(split.tokens[tokens], split.word_starts[tokens], np.diff(offsets))


class _Merging:
    """A folder that is being filled out of parts, in rounds of documents of the same places."""

    def __init__(self, text: Text, growing: ShardWriter, parts: Sequence[Shards]) -> None:
        self._growing = growing
        self._duplicate = _DUPLICATE.get(text.deduplicate)
        self._seen, self._dropped = SeenHashes(growing.database), Counter(growing.state.dropped)
        self._readers = [_Reader(part) for part in parts]

    def run(self, commit_seconds: float) -> None:
        """Write every document that the state does not hold yet."""
        consumed, committed = self._growing.state.consumed_documents, time.monotonic()
        for reader in self._readers:
            reader.skip(consumed)
        with tqdm(desc="shards", initial=consumed, unit=" documents", disable=None) as bar:
            for pieces in self._rounds():
                units, chosen = self._choose(pieces)
                for index, side in enumerate(SIDES):
                    self._write(side, units, chosen[units["side"][chosen] == index], pieces)
                consumed = int(units["place"].max()) + 1
                bar.update(consumed - bar.n)
                if time.monotonic() - committed > commit_seconds:
                    self._growing.commit(consumed, self._dropped)
                    committed = time.monotonic()
        self._growing.commit(consumed, self._dropped)

    def _rounds(self) -> Iterator[list[_Piece]]:
        """Yield what the parts hold of the same documents, in pieces that together are not large."""
        limits = _ROUND_BYTES // len(self._readers), _ROUND_UNITS // len(self._readers)
        end = 0
        while end < sys.maxsize:
            end = min(reader.end(*limits) for reader in self._readers)
            pieces = [reader.take(end) for reader in self._readers]
            if any(len(piece.units) for piece in pieces):
                yield pieces

    def _choose(self, pieces: Sequence[_Piece]) -> tuple[NDArray[Any], NDArray[np.intp]]:
        """Return the units of all pieces end to end, and the indices of those that stay, in the order of the text."""
        units = np.concatenate([piece.units for piece in pieces])
        order = np.argsort(units["place"], kind="stable")
        stays = ~units["hashed"][order]
        stays[~stays] = self._seen.add(units["hash"][order][~stays].tolist())
        chosen = order[stays]
        for reason, number in zip(REASONS, units["dropped"][chosen].sum(0).tolist(), strict=True):
            if number:
                self._dropped[reason] += number
        if self._duplicate and len(chosen) < len(units):
            self._dropped[self._duplicate] += len(units) - len(chosen)
        return units, chosen

    def _write(self, side: Side, units: NDArray[Any], chosen: NDArray[np.intp], pieces: Sequence[_Piece]) -> None:
        """Write the chosen units, all of one side, where they have sentences."""
        on_side = units["side"] == SIDES.index(side)
        unit_sentences = np.where(on_side, units["sentences"], 0).astype(np.int64)
        all_encoded = [piece.encoded[side] for piece in pieces]
        tokens, word_starts, lengths = (np.concatenate(arrays) for arrays in zip(*all_encoded, strict=True))
        kept = _ranges(_offsets(unit_sentences)[chosen], unit_sentences[chosen])
        kept_tokens = _ranges(_offsets(lengths)[kept], lengths[kept])
        begins = np.flatnonzero(np.diff(units["place"][chosen], prepend=-1))  # a document may be several units
        document_lengths = np.add.reduceat(unit_sentences[chosen], begins)
        document_lengths = document_lengths[document_lengths > 0]
        new = Counts(
            documents=len(document_lengths),
            sentences=len(kept),
            words=int(units["words"][chosen].sum()),
            tokens=len(kept_tokens),
            text_bytes=int(units["text_bytes"][chosen].sum()),
        )
        encoded = Encoded(tokens[kept_tokens], word_starts[kept_tokens], lengths[kept])
        self._growing.writers[side].write(encoded, document_lengths, new)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of several runs, laid end to end, begins."""
    return np.cumsum(lengths) - lengths


def _ranges(firsts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices from each of `firsts` on, as many as its length says, end to end."""
    return np.arange(lengths.sum()) + np.repeat(firsts - _offsets(lengths), lengths)
