"""Parts of shards: one text shared out among processes or machines, so that the parts merge into what one would make.

A part is a folder of shards that holds every n-th document, and beside them `units.bin`. A unit is what deduplication
keeps or drops as a whole: a document, or a sentence where it drops sentences. Each has a record of what it takes away
if another part has the same text earlier.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from configs import UserError
from tokenizer.cleaning import DUPLICATE_DOCUMENTS, HASH_BYTES, REASONS, Text, kept_lengths
from tokenizer.shards.cutter import EncodedBatch
from tokenizer.shards.writer import ColumnFiles, ShardWriter

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


class Journal:
    """What writes down the units of one part."""

    def __init__(self, text: Text, growing: ShardWriter) -> None:
        """Go on where the part in the folder `growing` is."""
        self.units = growing.state.units
        self._columns = ColumnFiles(growing.folder, {UNITS: (UNIT, self.units)})
        self._by_sentence = text.deduplicate == "sentences"

    def note(
        self, places: Sequence[int], work: EncodedBatch, stays: NDArray[np.bool_], left_out: NDArray[np.int64]
    ) -> None:
        """Write down documents: their places, what became of them, and what `choose` made of that."""
        cuts = work.cuts
        units = np.zeros(len(places), UNIT)
        units["place"], units["side"], units["dropped"] = places, cuts.heldout, left_out
        if self._by_sentence:
            # What was left out of a document is left out of the whole too, whatever becomes of the rest.
            kept = np.zeros(int(stays.sum()), UNIT)
            owners = np.repeat(np.arange(len(places)), cuts.lengths)[stays]
            kept["place"], kept["side"] = units["place"][owners], units["side"][owners]
            kept["text_bytes"], kept["words"], kept["sentences"] = work.text_bytes[stays], work.words[stays], 1
            kept["hash"], kept["hashed"] = _column(cuts.hashes)[stays], True
            units = np.concatenate([kept, units])
            units = units[np.argsort(units["place"], kind="stable")]
        else:
            units["sentences"] = kept_lengths(cuts, stays)
            for name, of_sentences in (("text_bytes", work.text_bytes), ("words", work.words)):
                totals = np.concatenate([[0], np.cumsum(np.where(stays, of_sentences, 0))])
                ends = np.cumsum(cuts.lengths)
                units[name] = totals[ends] - totals[ends - cuts.lengths]
            if cuts.hashes:
                units["hash"] = _column(cuts.hashes)
                units["hashed"] = left_out[:, DUPLICATE_DOCUMENTS] == 0
                units["hash"][~units["hashed"]] = np.void(bytes(HASH_BYTES))
        units = units[units["hashed"] | (units["sentences"] > 0) | units["dropped"].any(axis=1)]
        self._columns.append(units)
        self.units += len(units)

    def sync(self) -> None:
        """Return when what was noted has reached the disk."""
        self._columns.sync()

    def close(self) -> None:
        """Close the file."""
        self._columns.close()


def _column(hashes: Sequence[bytes]) -> NDArray[np.void]:
    return np.frombuffer(b"".join(hashes), f"V{HASH_BYTES}")
