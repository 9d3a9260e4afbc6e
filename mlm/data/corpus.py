"""The corpus of a model: shards of token ids, packed into rows, both built once and cached."""

import itertools
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
from tokenizer.sources import hash_texts
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import VocabularyConfig, load, sha256

PACKING = 1
"""Version of the packing, in the name of its cached folder; raise it whenever the packing changes."""


class DataConfig(Config):
    """The rows, and the tokenizer or shards that they are made from."""

    row_length: int = Field(128, ge=8, le=65_536)
    """Tokens in a row, special tokens counted. Segments are packed into rows and never see each other."""
    tokenizer: str | None = None
    """A tokenizer.json to use unchanged, ours or that of a published encoder; null trains one, as `vocabulary` says."""
    shards: Annotated[Texts, Field(min_length=1)] | None = None
    """One or several folders made by tokenizer.encode, read as one corpus with the tokenizer in them. No text is read,
    and `text` becomes that of the first folder. All folders must have the same tokenizer and `text.segments`. Keep
    their texts apart: a document in two folders is read twice, or leaks into the held-out text. null builds shards
    from `text`, or finds them in the cache."""


@dataclass(frozen=True)
class Corpus:
    """A tokenizer, and the training and held-out side of shards in rows."""

    folders: tuple[Path, ...]
    """The folders of the shards."""
    manifest: ShardManifest
    """The manifest of the folder; of several folders the sum of their manifests, without `files`."""
    tokenizer: Tokenizer
    tokenizer_path: Path
    train: PackedRows
    heldout: PackedRows


def open_corpus(
    data: DataConfig, text: TextConfig, vocabulary: VocabularyConfig, cache: Path, tokenizer_path: Path | None = None
) -> Corpus:
    """Return the corpus of a configuration; a missing tokenizer and missing shards are built in `cache`.

    `tokenizer_path` replaces the tokenizer.json of `data`, which may be gone. Text, tokenizer or shards that cannot be
    used raise UserError.
    """
    if tokenizer_path is None and data.tokenizer is not None:
        tokenizer_path = Path(data.tokenizer)
    if data.shards is None:
        return corpus_at([find_or_build_shards(text, vocabulary, cache, tokenizer_path)], data.row_length)
    corpus = corpus_at(list({Path(name).resolve(): Path(name) for name in data.shards}.values()), data.row_length)
    if tokenizer_path is not None and sha256(load(tokenizer_path)) != corpus.manifest.tokenizer_sha256:
        raise UserError(
            f"data.shards = {', '.join(data.shards)} was encoded with another tokenizer than {tokenizer_path}:"
            " encode the text with that one"
        )
    return corpus


def corpus_at(folders: Sequence[Path], row_length: int, *, checked: bool = False) -> Corpus:
    """Return the corpus whose shards are in `folders`, packed into rows of `row_length` slots.

    Shards that another process has just `checked` are not verified again. Shards that are missing, damaged, or do not
    fit those of the first folder raise UserError.
    """
    shards = [open_shards(folder, checked=checked) for folder in folders]
    first = shards[0]
    for one, other in itertools.combinations(shards, 2):
        _check_fit(one, other)
    path = first.path / TOKENIZER
    tokenizer = load(path)
    if tokenizer.get_vocab_size() != first.manifest.vocabulary_size:
        raise UserError(f"the tokenizer in {first.path} is not that of its tokens: delete the folder to rebuild it")
    special = SpecialTokens.of(tokenizer)
    train, heldout = (
        PackedRows.join([packed_rows(one, side, row_length, special) for one in shards]) for side in SIDES
    )
    manifest = _joined([one.manifest for one in shards])
    return Corpus(tuple(one.path for one in shards), manifest, tokenizer, path, train, heldout)


def _check_fit(first: Shards, other: Shards) -> None:
    ours, theirs = first.manifest, other.manifest
    if theirs.tokenizer_sha256 != ours.tokenizer_sha256:
        raise UserError(
            f"data.shards: {other.path} was encoded with another tokenizer than {first.path}: encode its text with"
            f" --tokenizer {first.path / TOKENIZER}, or remove it"
        )
    if theirs.text_fingerprint == ours.text_fingerprint:
        raise UserError(f"data.shards: {other.path} holds the same text as {first.path}: remove one of them")
    if theirs.text.segments != ours.text.segments:
        raise UserError(
            f"data.shards: {other.path} has text.segments = {theirs.text.segments}, and {first.path} has"
            f" {ours.text.segments}: encode one of them again, or remove it"
        )


def _joined(manifests: Sequence[ShardManifest]) -> ShardManifest:
    """Return the manifest of several folders read as one corpus; that of one folder is unchanged."""
    first, *others = manifests
    if not others:
        return first
    dropped: Counter[Reason] = sum((Counter(manifest.dropped) for manifest in manifests), Counter())
    return first.model_copy(
        update={
            "text_fingerprint": hash_texts(*(manifest.text_fingerprint for manifest in manifests)),
            "train": sum((manifest.train for manifest in others), first.train),
            "heldout": sum((manifest.heldout for manifest in others), first.heldout),
            "dropped": dict(dropped),
            "split_at_sentences": any(manifest.split_at_sentences for manifest in manifests),
            "files": {},
            "packages": tuple(package for manifest in manifests for package in manifest.packages),
        }
    )


def packed_rows(shards: Shards, side: Side, row_length: int, special: SpecialTokens) -> PackedRows:
    """Pack one side of the shards into rows; the packing is cached beside the shards."""
    split: ShardArrays = getattr(shards, side)
    folder = shards.path / f"rows-{PACKING}-{side}-{row_length}{'-cls-sep' * special.adds_cls_sep}"
    if not folder.exists():
        alone = shards.manifest.text.segments == "sentences"
        documents = np.arange(len(split.sentences)) if alone else np.asarray(split.documents)
        rows = pack(np.asarray(split.sentences), documents, row_length, 2 * special.adds_cls_sep)
        try:
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=shards.path) as partial:
                for name, array in vars(rows).items():
                    np.save(Path(partial, f"{name}.npy"), array)
                Path(partial).rename(folder)
        except OSError as error:
            if not folder.exists():  # by another process, which packed the same rows first
                raise OSError(error.errno, f"cannot write ({error})", str(folder)) from error
    rows = Rows(*(_mapped(folder / f"{name}.npy") for name in ("starts", "lengths", "borders")))
    if not _is_packing(rows, len(split.tokens), row_length, 2 * special.adds_cls_sep):
        raise UserError(f"{folder} holds no packing of these shards: delete it to rebuild it")
    return PackedRows((split,), rows, row_length, special, shards.manifest.vocabulary_size)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}): delete the folder {path.parent} to rebuild it") from error
    return array


def _is_packing(rows: Rows, tokens: int, row_length: int, special: int) -> bool:
    """Return whether the rows hold all tokens, in runs inside the split, and none is longer than `row_length`."""
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
