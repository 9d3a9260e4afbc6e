"""Text made ready for a model: built once, packed into rows once, and found again."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from configs import UserError
from mlm.data import PackedRows
from mlm.packing import Rows, pack
from tokenizer import vocabulary
from tokenizer.prepare import prepare
from tokenizer.shards import SIDES, Shards, Split, open_shards
from tokenizer.text import Side, Text
from tokenizer.vocabulary import Vocabulary

PACKING = 1
"""Version of the packing, in the name of what is kept of it: to be raised whenever it packs otherwise."""


@dataclass(frozen=True)
class Corpus:
    """Text made ready for a model: its tokenizer, its shards, and both sides of these in rows."""

    shards: Shards
    tokenizer: Tokenizer
    tokenizer_path: Path
    train: PackedRows
    heldout: PackedRows


def open_corpus(
    text: Text, settings: Vocabulary, row_length: int, cache: Path, tokenizer_path: Path | None = None
) -> Corpus:
    """Return the corpus of `text`, building in `cache` what is not there yet.

    Args:
        text: where the text comes from.
        settings: the vocabulary to learn, unless `tokenizer_path` gives one.
        row_length: slots in a row, special tokens counted.
        cache: directory of tokenizers and shards.
        tokenizer_path: a tokenizer.json.

    Raises:
        UserError: the text or the tokenizer cannot be used.

    """
    return corpus_at(prepare(text, settings, cache, tokenizer_path), row_length)


def corpus_at(folder: Path, row_length: int, *, checked: bool = False) -> Corpus:
    """Return the corpus whose shards are in `folder`, packed into rows of `row_length` slots.

    What another process has `checked` a moment ago is not read again.

    Raises:
        UserError: the shards are missing or damaged.

    """
    shards = open_shards(folder, checked=checked)
    path = shards.path / "tokenizer.json"
    tokenizer = vocabulary.load(path)
    if tokenizer.get_vocab_size() != shards.manifest.vocabulary_size:
        raise UserError(f"the tokenizer in {shards.path} is not that of its tokens: delete the folder to build it anew")
    cls_sep = tokenizer.num_special_tokens_to_add(is_pair=False) > 0
    train, heldout = (packed_rows(shards, side, row_length, cls_sep=cls_sep) for side in SIDES)
    return Corpus(shards, tokenizer, path, train, heldout)


def packed_rows(shards: Shards, side: Side, row_length: int, *, cls_sep: bool) -> PackedRows:
    """Pack one side of the shards into rows; the packing is kept beside the shards and found again."""
    split: Split = getattr(shards, side)
    folder = shards.path / f"rows-{PACKING}-{side}-{row_length}{'-cls-sep' * cls_sep}"
    if not folder.exists():
        alone = shards.manifest.text.segments == "sentences"
        documents = np.arange(len(split.sentences)) if alone else np.asarray(split.documents)
        rows = pack(np.asarray(split.sentences), documents, row_length, 2 * cls_sep)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=shards.path))
        for name, array in vars(rows).items():
            np.save(partial / f"{name}.npy", array)
        try:
            partial.rename(folder)
        except OSError:  # another process packed the same rows first
            if not folder.exists():
                raise
            shutil.rmtree(partial)
    rows = Rows(*(_mapped(folder / f"{name}.npy") for name in ("starts", "lengths", "borders")))
    if not _is_packing(rows, len(split.tokens)):
        raise UserError(f"{folder} holds no packing of these shards: delete it to build it anew")
    return PackedRows(split, rows, row_length, cls_sep, shards.manifest.vocabulary_size)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}): delete the folder {path.parent} to build it anew") from None
    return array


def _is_packing(rows: Rows, tokens: int) -> bool:
    """Tell whether the rows hold every token once, in runs that lie within the tokens."""
    arrays = (rows.starts, rows.lengths, rows.borders)
    if [array.dtype.str for array in arrays] != ["<i8", "<i4", "<i8"] or any(array.ndim != 1 for array in arrays):
        return False
    if len(rows.starts) != len(rows.lengths) or len(rows.borders) < 2 or not len(rows.starts):
        return False
    whole = rows.borders[0] == 0 and rows.borders[-1] == len(rows.starts) and (np.diff(rows.borders) > 0).all()
    inside = rows.starts.min() >= 0 and (rows.starts + rows.lengths).max() <= tokens and rows.lengths.min() > 0
    return bool(whole and inside and rows.lengths.sum(dtype=np.int64) == tokens)
