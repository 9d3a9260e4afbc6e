"""Gather the prose in the documentation of Python source files: every installation of this project has it.

It is the default corpus: the docstrings of the Python standard library and of the project's required dependencies,
and the standard library's help topics, as clean sentences. Files are read as text, never imported or executed.
Its functions raise a UserError if the project or one of its dependencies is not installed.
"""

import ast
import functools
import hashlib
import importlib.metadata
import io
import platform
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from configs import UserError
from configs.extras import PROJECT
from tokenizer.sources import prose

_FORMAT = 1
"""Part of the fingerprint: raise it whenever the same files give other sentences."""

_STANDARD_LIBRARY = "python"
_TOPICS = "pydoc_data.topics"
_LEFT_OUT = {"test", "tests", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo"}
"""Folders of test suites, of other packages, and of parts of Python that many installations lack."""


class Source(NamedTuple):
    """A Python source file: its package, its dotted module name and its path."""

    package: str
    module: str
    path: Path


@dataclass(frozen=True, slots=True)
class Module:
    """One module's prose: complete sentences in the order of the file, white space collapsed."""

    package: str
    name: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PackageWords:
    """One package's contribution: words between white space, and modules with at least one sentence."""

    name: str
    version: str
    words: int
    modules: int


@functools.cache
def modules() -> list[Module]:
    """Return every module that holds prose, sorted by package and name; one shared list: do not change it.

    No sentence occurs twice in it, nor nearly so: split it by modules, and no part repeats another.
    """
    return extract(sources())


def packages() -> list[PackageWords]:
    """Return the contributions of the standard library ("python") and each dependency, sorted by name."""
    versions = {name: importlib.metadata.version(name) for name in _requirements()}
    versions[_STANDARD_LIBRARY] = platform.python_version()
    words = {name: [_words(module) for module in modules() if module.package == name] for name in sorted(versions)}
    return [PackageWords(name, versions[name], sum(counts), len(counts)) for name, counts in words.items()]


def fingerprint() -> str:
    """Return a SHA-256, in hexadecimal, of the names and contents of all the files that `modules` reads, unparsed."""
    digest = hashlib.sha256(str(_FORMAT).encode())
    for source in sources():
        content = source.path.read_bytes()
        digest.update(f"\0{source.package}\0{source.module}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


@functools.cache
def sources() -> list[Source]:
    """Return the files that `modules` reads, sorted by package and module name, without test suites; one shared list.

    Walking through the folders takes half a second.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    kept = [path for path in root.iterdir() if path.name not in _LEFT_OUT]  # what is installed beside it may be huge
    files = [*(path for path in kept if path.suffix == ".py"), *(file for path in kept for file in path.rglob("*.py"))]
    found = [(_STANDARD_LIBRARY, path.relative_to(root), path) for path in files]
    for name in _requirements():
        for file in importlib.metadata.distribution(name).files or []:
            if file.suffix == ".py" and ".." not in file.parts:  # a script outside the packages is no module
                found.append((name, Path(file), Path(str(file.locate()))))
    named = {
        (package, ".".join(relative.with_suffix("").parts).removesuffix(".__init__")): path
        for package, relative, path in found
        if _LEFT_OUT.isdisjoint(relative.parts) and path.is_file()
    }
    return [Source(package, module, path) for (package, module), path in sorted(named.items())]


def extract(files: Iterable[Source]) -> list[Module]:
    """Return the prose of `files` in their order, without sentences that nearly repeat an earlier one of any file.

    A file's documentation is each of its triple-quoted strings that begins a line: the docstrings of modules,
    classes, functions and attributes, and those given to a function such as NumPy's `add_newdoc`. A file that is
    not decodable has none; one that is not valid Python may still have some.
    """
    seen: set[int] = set()
    found = []
    for source in files:
        texts = _topics(source.path) if source.module == _TOPICS else _docstrings(_read(source.path))
        candidates = (sentence for text in texts for sentence in prose.sentences(text))
        if sentences := tuple(sentence for sentence in candidates if prose.is_new(sentence, seen)):
            found.append(Module(source.package, source.module, sentences))
    return found


def _requirements() -> list[str]:
    """Return the names of the distributions that the project requires, extras aside, having found each installed."""
    try:
        lines = importlib.metadata.requires(PROJECT) or []
        names = [re.split(r"[^\w.-]", line)[0].lower() for line in lines if "extra" not in line.partition(";")[2]]
        for name in names:
            importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `pip install -e .` in the project's folder") from None
    return names


def _words(module: Module) -> int:
    return sum(len(sentence.split()) for sentence in module.sentences)


def _read(path: Path) -> str:
    """Return a source file's text, decoded as it declares, or nothing where the declaration is unknown or wrong."""
    content = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except (SyntaxError, UnicodeDecodeError):
        return ""


_STRING = re.compile(
    r'''\#[^\n]*+  # a comment: quotes in it open nothing
    | """(?:[^"\\]++|\\.|"(?!""))*+""" | \'\'\'(?:[^'\\]++|\\.|'(?!\'\'))*+\'\'\'
    | "(?:[^"\\\n]++|\\.)*+" | '(?:[^'\\\n]++|\\.)*+'  # any other string, likewise''',
    re.DOTALL | re.VERBOSE,
)


def _docstrings(source: str) -> Iterator[str]:
    """Yield the triple-quoted strings that begin a line, in a twentieth of the time that parsing all the code takes."""
    for match in _STRING.finditer(source):
        literal = match[0]
        if literal.startswith(('"""', "'''")):
            prefix = source[source.rfind("\n", 0, match.start()) + 1 : match.start()].strip().lower()
            if prefix in ("", "u"):
                yield _unescape(literal) if "\\" in literal else literal[3:-3]
            elif prefix == "r":
                yield literal[3:-3]


def _unescape(literal: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of "\d" and the like, which mean what they say
        try:
            return str(ast.literal_eval(literal))
        except (SyntaxError, ValueError):  # an escape that no Python reads, such as "\x" alone
            return ""


def _topics(path: Path) -> Iterator[str]:
    """Yield the values of the one dictionary in `pydoc_data/topics.py`."""
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign):
            yield from ast.literal_eval(statement.value).values()
