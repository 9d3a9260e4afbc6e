"""Text made ready for a model: built once, packed into rows once, and found again."""

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer

from configs import Config, Texts, UserError
from mlm.data.batches import PackedRows
from mlm.data.packing import Rows, pack
from tokenizer.cache import find_or_build_shards
from tokenizer.cleaning import Reason, Side, TextConfig
from tokenizer.shards.format import SIDES, TOKENIZER, ShardArrays, ShardManifest, Shards, open_shards
from tokenizer.vocabulary import VocabularyConfig, load, sha256

PACKING = 1
"""Version of the packing, in the name of what is kept of it: to be raised whenever it packs otherwise."""


class DataConfig(Config):
    """How text becomes rows."""

    row_length: int = Field(128, ge=8, le=65_536)
    """Tokens in a row, special tokens counted. Segments are packed into rows and never see each other."""
    tokenizer: str | None = None
    """A tokenizer.json to use as it is; null learns one from the training text by `vocabulary`."""
    shards: Annotated[Texts, Field(min_length=1)] | None = None
    """One or several folders that tokenizer.encode has made, used as they are with the tokenizer in them and read as
    one corpus: no text is read, and `text` is what the first folder says of it. Their tokenizer and `text.segments`
    must be the same. Text that is in two folders is trained on twice, and may be held out in neither: keep it apart.
    null builds shards from `text`, or finds them in the cache."""


@dataclass(frozen=True)
class Corpus:
    """Text made ready for a model: its tokenizer, and both sides of its shards in rows."""

    folders: tuple[Path, ...]
    """The folders of its shards."""
    manifest: ShardManifest
    """What the shards hold: the manifest of the folder, or of several folders the sum of theirs without `files`."""
    tokenizer: Tokenizer
    tokenizer_path: Path
    train: PackedRows
    heldout: PackedRows


def open_corpus(
    data: DataConfig, text: TextConfig, vocabulary: VocabularyConfig, cache: Path, tokenizer_path: Path | None = None
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
        return corpus_at([find_or_build_shards(text, vocabulary, cache, tokenizer_path)], data.row_length)
    corpus = corpus_at(list(map(Path, data.shards)), data.row_length)
    if tokenizer_path is not None:
        wanted = sha256(load(tokenizer_path))
        if wanted != corpus.manifest.tokenizer_sha256:
            raise UserError(
                f"data.shards = {', '.join(data.shards)} was encoded with another tokenizer than {tokenizer_path}:"
                " encode the text with that one"
            )
    return corpus


def corpus_at(folders: Sequence[Path], row_length: int, *, checked: bool = False) -> Corpus:
    """Return the corpus whose shards are in `folders`, packed into rows of `row_length` slots.

    What another process has `checked` a moment ago is not read again.

    Raises:
        UserError: shards are missing or damaged, or those of one folder do not fit those of the first.

    """
    shards = [open_shards(folder, checked=checked) for folder in folders]
    first, *others = shards
    for other in others:
        _check_fit(first, other)
    path = first.path / TOKENIZER
    tokenizer = load(path)
    if tokenizer.get_vocab_size() != first.manifest.vocabulary_size:
        raise UserError(f"the tokenizer in {first.path} is not that of its tokens: delete the folder to build it anew")
    cls_sep = tokenizer.num_special_tokens_to_add(is_pair=False) > 0
    train, heldout = (
        PackedRows.join([packed_rows(one, side, row_length, cls_sep=cls_sep) for one in shards]) for side in SIDES
    )
    manifest = _joined([one.manifest for one in shards])
    return Corpus(tuple(one.path for one in shards), manifest, tokenizer, path, train, heldout)


def _check_fit(first: Shards, other: Shards) -> None:
    ours, theirs = first.manifest, other.manifest
    if theirs.tokenizer_sha256 != ours.tokenizer_sha256:
        raise UserError(
            f"data.shards: {other.path} was encoded with another tokenizer than {first.path}: encode its text with"
            f" --tokenizer {first.path / TOKENIZER}, or leave it out"
        )
    if theirs.text.segments != ours.text.segments:
        raise UserError(
            f"data.shards: {other.path} has text.segments = {theirs.text.segments}, and {first.path} has"
            f" {ours.text.segments}: encode one of them anew, or leave it out"
        )


def _joined(manifests: Sequence[ShardManifest]) -> ShardManifest:
    """Return the manifest of several folders read as one corpus; that of one folder, as it is."""
    first, *others = manifests
    if not others:
        return first
    dropped: Counter[Reason] = sum((Counter(manifest.dropped) for manifest in manifests), Counter())
    fingerprints = "\0".join(manifest.text_fingerprint for manifest in manifests)
    return first.model_copy(
        update={
            "text_fingerprint": hashlib.sha256(fingerprints.encode()).hexdigest(),
            "train": sum((manifest.train for manifest in others), first.train),
            "heldout": sum((manifest.heldout for manifest in others), first.heldout),
            "dropped": dict(dropped),
            "files": {},
            "packages": tuple(package for manifest in manifests for package in manifest.packages),
        }
    )


def packed_rows(shards: Shards, side: Side, row_length: int, *, cls_sep: bool) -> PackedRows:
    """Pack one side of the shards into rows; the packing is kept beside the shards and found again."""
    split: ShardArrays = getattr(shards, side)
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
    return PackedRows((split,), rows, row_length, cls_sep, shards.manifest.vocabulary_size)


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
