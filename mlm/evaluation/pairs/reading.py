"""Read minimal pairs: BLiMP and Zorro as they are published, or a table of your own.

A .jsonl file has BLiMP's columns sentence_good, sentence_bad, and, where they are there, UID and field. Of a .txt file
every second line is a good sentence, behind the bad one (Zorro, Huebner et al. 2021). A .tsv file has a good and a bad
sentence on each line, and perhaps a paradigm. The pairs of an archive or a folder are all of one format. Files that
hold no pairs may lie beside them.
"""

import itertools
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from configs import UserError
from mlm.evaluation.pairs import grammar
from mlm.evaluation.pairs.pair import Pair
from tokenizer.sources import files, hub, remote
from tokenizer.sources.files import AnyPath, suffixes
from tokenizer.sources.tables import Options, rows

KINDS = (".jsonl", ".txt", ".tsv")
_ARCHIVES = {".zip": "zip", ".tar": "tar", ".tgz": "tar", ".tar.gz": "tar"}
_COLUMNS, _NAMES = ("sentence_good", "sentence_bad"), ("UID", "field")
_MEND = "BLiMP's columns are sentence_good and sentence_bad; in a .tsv file they have no names"
_LEFTOVERS = ("__MACOSX", ".")
"""Beginnings of the names that a Mac leaves in an archive, and of hidden files."""


def read_pairs(names: Sequence[str], most: int | None = None) -> list[Pair]:
    """Return the pairs in files, folders and archives, local or of a store, or in data sets of the Hugging Face hub.

    No name stands for those of a small grammar. Of each paradigm the first `most` are returned; None: all.

    Raises:
        UserError: there are none, or a sentence is empty or has no partner.
    """
    found = itertools.chain.from_iterable(map(_pairs_of, names)) if names else grammar.pairs()
    counts = Counter[str]()
    kept = []
    for pair in found:
        counts[pair.paradigm] += 1
        if most is None or counts[pair.paradigm] <= most:
            kept.append(pair)
    return kept


def _pairs_of(name: str) -> Iterator[Pair]:
    path = files.without_scheme(name)
    archive = next((kind for end, kind in _ARCHIVES.items() if path.lower().endswith(end)), None)
    found: Sequence[AnyPath]
    if archive is not None:
        found = remote.find(f"{archive}://**::{_checked_archive(path, archive)}")
    elif Path(path).is_dir():
        found = sorted(one for one in Path(path).rglob("*") if one.is_file())
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", path) and suffixes(Path(path))[0] not in KINDS:
        yield from _checked_pairs(_of_the_hub(path), path)
        return
    else:
        yield from _checked(files.located(name))
        return
    found = [one for one in found if suffixes(one)[0] in KINDS and not _is_leftover(one, path)]
    if not found:
        raise UserError(f"{name} has no pairs: it holds no file whose name ends in {', '.join(KINDS)}")
    kinds = sorted({suffixes(one)[0] for one in found})
    if len(kinds) > 1:
        raise UserError(f"{name} holds files of several formats, {', '.join(kinds)}: name those that are pairs")
    for one in found:
        yield from _checked(one)


def _checked_archive(name: str, kind: str) -> str:
    """Return the address of an archive; a UserError if it is a local file that is none."""
    if remote.is_remote(name):
        return name
    path = Path(name).absolute()
    files.status(path)
    if not (zipfile.is_zipfile(path) if kind == "zip" else tarfile.is_tarfile(path)):
        raise UserError(f"{path} is no {kind} archive, or a damaged one: fetch it again")
    return str(path)


def _is_leftover(path: AnyPath, folder: str) -> bool:
    inside = Path(path.path) if isinstance(path, remote.Remote) else Path(str(path)).relative_to(folder)
    return any(part.startswith(_LEFTOVERS) for part in inside.parts)


def _checked(path: AnyPath) -> Iterator[Pair]:
    if isinstance(path, Path):
        files.status(path)
    kind = suffixes(path)[0]
    if kind not in KINDS:
        raise UserError(f"{path}: its name tells no format of pairs: it must end in one of {', '.join(KINDS)}")
    yield from _checked_pairs({".jsonl": _blimp, ".txt": _alternating, ".tsv": _tabbed}[kind](path), path)


def _checked_pairs(pairs: Iterable[Pair], where: object) -> Iterator[Pair]:
    """Yield the pairs; a UserError if there are none, or a sentence is empty."""
    number = 0
    for number, pair in enumerate(pairs, start=1):
        if not pair.good.strip() or not pair.bad.strip():
            raise UserError(f"{where}, pair {number}: a sentence is empty: mend it, or remove the pair")
        # BLiMP writes one of its fields in two ways, syntax_semantics and syntax/semantics.
        yield replace(pair, field=pair.field.replace("/", "_"))
    if not number:
        raise UserError(f"{where} has no pairs: remove it, or write some")


def _blimp(path: AnyPath) -> Iterator[Pair]:
    for row in rows(path, Options(_COLUMNS, _NAMES, mend_columns=_MEND)):
        values = [row.values.get(name, "") for name in (*_COLUMNS, *_NAMES)]
        for name, value in zip((*_COLUMNS, *_NAMES), values, strict=True):
            if not isinstance(value, str) or (name in _COLUMNS and name not in row.values):
                raise UserError(f"{row.place}: {name} is no text: {_MEND}")
        good, bad, paradigm, field = map(str, values)
        yield Pair(good, bad, paradigm or _stem(path), field)


def _alternating(path: AnyPath) -> Iterator[Pair]:
    """Yield the pairs of a file of Zorro's, whose name is that of its part of grammar and of the paradigm."""
    field, _, _ = _stem(path).rpartition("-")
    bad = None
    for line in _lines(path):
        if bad is None:
            bad = line
        else:
            yield Pair(line, bad, _stem(path), field)
            bad = None
    if bad is not None:
        raise UserError(
            f"{path}: the last sentence has no partner: each bad one stands on the line before its good one"
        )


def _tabbed(path: AnyPath) -> Iterator[Pair]:
    columns = 0
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split("\t")
        columns = columns or len(fields)
        if number == 1 and fields[0] in (_COLUMNS[0], "good"):
            raise UserError(f"{path}, line 1 names columns, and every line is a pair: remove it")
        if len(fields) not in (2, 3):
            raise UserError(
                f"{path}, line {number}: a pair is good<TAB>bad, or good<TAB>bad<TAB>paradigm: mend the line"
            )
        if len(fields) != columns:
            mend = "name a paradigm on every line or on none"
            raise UserError(f"{path}, line {number}: {len(fields)} columns, and line 1 has {columns}: {mend}")
        yield Pair(fields[0], fields[1], fields[2].strip() if columns == 3 else _stem(path))


def _lines(path: AnyPath) -> Iterator[str]:
    options = Options(())
    with files.opened(path) as file:
        for line in options.lines(path, file):
            yield line.rstrip("\r\n")


def _stem(path: AnyPath) -> str:
    """Return the name of a file without its folder and suffixes."""
    return Path(path.path if isinstance(path, remote.Remote) else str(path)).name.split(".")[0]


def _of_the_hub(name: str) -> Iterator[Pair]:
    for configuration in hub.configurations(name):
        for row in hub.read_split(name, configuration, "train", None, (*_COLUMNS, *_NAMES), _MEND):
            yield Pair(*(row[column] for column in (*_COLUMNS, *_NAMES)))
