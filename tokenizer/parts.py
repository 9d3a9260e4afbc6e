"""Parts of shards: one text shared out among processes or machines, so that the parts merge into what one would make.

A part is a folder of shards that holds every n-th document, and beside them `units.bin`. A unit is what deduplication
keeps or drops as a whole: a document, or a sentence where it drops sentences. Each has a record of what it takes away
if another part has the same text earlier.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from configs import UserError
from tokenizer.shards import SIDES
from tokenizer.text import HASH_BYTES, REASONS, Passage, Reason, Seen, Text
from tokenizer.writer import Columns, Growing, measure

MAXIMUM_PARTS = 100
"""To merge, a process opens nine files of each; many systems let it open 1,024."""
UNITS = "units.bin"
UNIT = np.dtype(
    [
        ("place", "<i8"),  # the document's number in the whole text, from 0
        ("text_bytes", "<i8"),
        ("sentences", "<u4"),  # how many of its side's files are the unit's; the records are in their order
        ("words", "<u4"),
        ("dropped", "<u4", (len(REASONS),)),  # what cleaning left out of it, by reason
        ("side", "|u1"),  # in the order of SIDES
        ("hashed", "|b1"),  # false: no other part can take it away
        ("hash", f"V{HASH_BYTES}"),
    ]
)
_FLUSH_UNITS = 10_000
_NOTHING = (0,) * len(REASONS)


@dataclass(frozen=True, slots=True)
class Part:
    """One of several parts: with n of them, part 1 has the documents 0, n, 2n and so on."""

    number: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, words: str) -> Self:
        """Read '2/8', the second of eight.

        Raises:
            UserError: it is no part, or there is none of that number.

        """
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", words)
        if match is None:
            raise UserError(f"--part {words} names no part: write --part 2/8 for the second of 8")
        part = cls(int(match[1]), parse_count(f"--part {words}", match[2]))
        if not 1 <= part.number <= part.count:
            raise UserError(
                f"--part {words}: there is no such part: name one from 1/{part.count} to {part.count}/{part.count}"
            )
        return part

    def __str__(self) -> str:
        """Return it as `parse` reads it."""
        return f"{self.number}/{self.count}"

    def folder(self, output: Path) -> Path:
        """Return where the part is built of the shards that will be in `output`: beside them."""
        output = output.resolve()
        return output.with_name(f"{output.name}.part-{self.number}-of-{self.count}")

    def fingerprint(self, whole: str) -> str:
        """Return the fingerprint of the part, given that of the text."""
        return hashlib.sha256(f"{whole}\0{self}\0{UNIT.descr}".encode()).hexdigest()

    def first_place(self, consumed: int) -> int:
        """Return the number of the part's first document that is not among the first `consumed` of the text."""
        return consumed + (self.number - 1 - consumed) % self.count


WHOLE = Part(1, 1)


def parse_count(option: str, words: str) -> int:
    """Read a number of parts; `option` is what the user wrote.

    Raises:
        UserError: it is no number, or there cannot be so many.

    """
    if not re.fullmatch("[0-9]{1,9}", words) or not 1 <= int(words) <= MAXIMUM_PARTS:
        raise UserError(f"{option}: {words} is no number of parts: there may be 1 to {MAXIMUM_PARTS}")
    return int(words)


class Journal(Seen):
    """The set of texts that one part has seen, which writes down the part's units."""

    def __init__(self, text: Text, growing: Growing) -> None:
        """Go on where the part in the folder `growing` is."""
        super().__init__(growing.database)
        self.units = growing.state.units
        self._columns = Columns(growing.folder, {UNITS: (UNIT, self.units)})
        self._by_sentence = text.deduplicate == "sentences"
        self._dropped = Counter(growing.state.dropped)
        self._new: list[bytes] = []
        self._rows: list[tuple[Any, ...]] = []

    def add_hash(self, digest: bytes) -> bool:
        """Add the text of which this is the hash; return whether it is new."""
        is_new = super().add_hash(digest)
        if is_new:
            self._new.append(digest)
        return is_new

    def note(self, place: int, passage: Passage | None, dropped: Mapping[Reason, int]) -> None:
        """Write down the document at `place`, which was just cleaned into `passage`; `dropped` is the total so far."""
        left_out = tuple(dropped.get(reason, 0) - self._dropped[reason] for reason in REASONS)
        kept = passage.sentences if passage else []
        side = SIDES.index(passage.side) if passage else 0
        units: list[tuple[bytes | None, list[str], tuple[int, ...]]]
        if self._by_sentence:
            units = [(digest, [sentence], _NOTHING) for digest, sentence in zip(self._new, kept, strict=True)]
            units.append((None, [], left_out))  # left out of the whole too, whatever becomes of the rest
        else:
            units = [(self._new[0] if self._new else None, kept, left_out)]
        for digest, sentences, away in units:
            if digest is not None or sentences or any(away):
                words, text_bytes = measure(sentences)
                unit = (place, text_bytes, len(sentences), words, away, side, digest is not None)
                self._rows.append((*unit, digest or bytes(HASH_BYTES)))
        self._new.clear()
        if any(left_out):
            self._dropped = Counter(dropped)
        if len(self._rows) >= _FLUSH_UNITS:
            self._flush()

    def sync(self) -> None:
        """Return when what was noted has reached the disk."""
        self._flush()
        self._columns.sync()

    def close(self) -> None:
        """Close the file."""
        self._columns.close()

    def _flush(self) -> None:
        self._columns.append(np.array(self._rows, UNIT))
        self.units += len(self._rows)
        self._rows.clear()
