"""Text made ready for a model: built once, packed into rows once, and found again."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer

from configs import Config, UserError
from mlm.data.batches import PackedRows
from mlm.data.packing import Rows, pack
from tokenizer.cache import prepare
from tokenizer.cleaning import Side, Text
from tokenizer.shards.format import SIDES, Shards, Split, open_shards
from tokenizer.vocabulary import Vocabulary, load, sha256

PACKING = 1
"""Version of the packing, in the name of what is kept of it: to be raised whenever it packs otherwise."""


class DataConfig(Config):
    """How text becomes rows."""

    row_length: int = Field(128, ge=8, le=65_536)
    """Tokens in a row, special tokens counted. Segments are packed into rows and never see each other."""
    tokenizer: str | None = None
    """A tokenizer.json to use as it is; null learns one from the training text by `vocabulary`."""
    shards: str | None = None
    """A folder that tokenizer.encode has made, used as it is with the tokenizer in it: no text is read, and `text` is
    what the folder says of it. null builds shards from `text`, or finds them in the cache."""


@dataclass(frozen=True)
class Corpus:
    """Text made ready for a model: its tokenizer, its shards, and both sides of these in rows."""

    shards: Shards
    tokenizer: Tokenizer
    tokenizer_path: Path
    train: PackedRows
    heldout: PackedRows


def open_corpus(
    data: DataConfig, text: Text, vocabulary: Vocabulary, cache: Path, tokenizer_path: Path | None = None
) -> Corpus:
    """Return the corpus of a configuration, building in `cache` what is not there yet.

    Args:
        data: the length of rows, and the shards or the tokenizer where these are given.
        text: where the text comes from.
        vocabulary: the vocabulary to learn.
        cache: folder of tokenizers and shards that were built before.
        tokenizer_path: a tokenizer.json that stands in for that of `data`, whose file may be gone.

    Raises:
        UserError: text, tokenizer or shards cannot be used.

    """
    if tokenizer_path is None and data.tokenizer is not None:
        tokenizer_path = Path(data.tokenizer)
    if data.shards is None:
        return corpus_at(prepare(text, vocabulary, cache, tokenizer_path), data.row_length)
    corpus = corpus_at(Path(data.shards), data.row_length)
    if tokenizer_path is not None:
        wanted = sha256(load(tokenizer_path))
        if wanted != corpus.shards.manifest.tokenizer_sha256:
            raise UserError(
                f"data.shards = {data.shards} was encoded with another tokenizer than {tokenizer_path}:"
                " encode the text with that one"
            )
    return corpus


def corpus_at(folder: Path, row_length: int, *, checked: bool = False) -> Corpus:
    """Return the corpus whose shards are in `folder`, packed into rows of `row_length` slots.

    What another process has `checked` a moment ago is not read again.

    Raises:
        UserError: the shards are missing or damaged.

    """
    shards = open_shards(folder, checked=checked)
    path = shards.path / "tokenizer.json"
    tokenizer = load(path)
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
    if not _is_packing(rows, len(split.tokens), row_length, 2 * cls_sep):
        raise UserError(f"{folder} holds no packing of these shards: delete it to build it anew")
    return PackedRows(split, rows, row_length, cls_sep, shards.manifest.vocabulary_size)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}): delete the folder {path.parent} to build it anew") from None
    return array


def _is_packing(rows: Rows, tokens: int, row_length: int, special: int) -> bool:
    """Tell whether the rows hold as many tokens as there are, in runs that lie within them, and none holds too many."""
    arrays = (rows.starts, rows.lengths, rows.borders)
    if [array.dtype.str for array in arrays] != ["<i8", "<i4", "<i8"] or any(array.ndim != 1 for array in arrays):
        return False
    if len(rows.starts) != len(rows.lengths) or len(rows.borders) < 2 or not len(rows.starts):
        return False
    whole = rows.borders[0] == 0 and rows.borders[-1] == len(rows.starts) and (np.diff(rows.borders) > 0).all()
    inside = rows.starts.min() >= 0 and (rows.starts + rows.lengths).max() <= tokens and rows.lengths.min() > 0
    if not (whole and inside and rows.lengths.sum(dtype=np.int64) == tokens):
        return False
    slots = np.add.reduceat(rows.lengths.astype(np.int64) + special, rows.borders[:-1])
    return bool(slots.max() <= row_length)
