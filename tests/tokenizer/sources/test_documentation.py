import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from configs import UserError
from tokenizer.sources import documentation
from tokenizer.sources.documentation import Module, Source

Read = Callable[[str | bytes], list[str]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write one file's content and return its sentences."""

    def read(content: str | bytes) -> list[str]:
        path = tmp_path / "module.py"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        modules = documentation.extract([Source("package", "module", path)])
        return [sentence for module in modules for sentence in module.sentences]

    return read


def test_docstrings_of_modules_classes_functions_attributes_and_calls_are_read(read: Read) -> None:
    source = '''#!/usr/bin/env python
# A comment's """ opens nothing, and isn't closed.
"""The module has some prose."""
add_newdoc("array", """
    This begins on the line of the call.
    """)

class Reader:
    r"""A class reads all the \\files."""

    size = 4
    \'\'\'The attribute holds a number.\'\'\'

    async def read(self):
        u"""Read a line of it\\
 from the file."""
        quotes = "\\"" + '"""'

add_docstring(
    Reader,
    """It is given to a function.""",
)
'''
    assert read(source) == [
        "The module has some prose.",
        "The attribute holds a number.",
        "Read a line of it from the file.",
        "It is given to a function.",
    ]


def test_other_strings_are_not_documentation(read: Read) -> None:
    assert read('x = """This is the text of a template."""\nf"""This is {x} and a format string."""\n') == []
    assert read('"This is a short string of one line."\n') == []


def test_files_are_neither_imported_nor_run(read: Read, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    source = f'"""This module stops the program."""\nopen({str(trace)!r}, "w").close()\nraise SystemExit(1)\n'
    assert read(source) == ["This module stops the program."]
    assert not trace.exists()


def test_a_file_of_another_python_is_still_read(read: Read) -> None:
    assert read('"""The module is an old one."""\nprint "hello"\n') == ["The module is an old one."]


def test_broken_escapes_are_dropped_and_unknown_ones_kept_without_a_warning(read: Read) -> None:
    assert read(r'"""This has \x no digits in it."""') == []
    assert read(r'"""This\tis an \d and the end."""' + '\n"""It goes on after this."""') == ["It goes on after this."]


def test_files_are_decoded_as_they_declare(read: Read) -> None:
    text = '"""The café is in the street."""\n'
    assert read(f"# -*- coding: latin-1 -*-\n{text}".encode("latin-1")) == ["The café is in the street."]
    assert read(b"\xef\xbb\xbf" + text.encode()) == ["The café is in the street."]
    assert read(text.replace("is in", "is\r\nin")) == ["The café is in the street."]
    assert read(text.encode("latin-1")) == []
    assert read(f"# coding: no-such-codec\n{text}") == []
    assert read(b"\0\0" + text.encode()) == []


def test_lines_may_end_as_on_windows(read: Read) -> None:
    source = '"""This is the first.\n\nHeading of It\n-------------\nThis is the last.\n"""\n'
    assert read(source.replace("\n", "\r\n")) == ["This is the first.", "This is the last."]


def test_help_topics_are_the_values_of_a_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "topics.py"
    path.write_text(
        "topics = {'if': 'The \"if\" statement\\n******\\n\\nIt is used for '\n 'conditional execution.\\n'}\n"
    )
    assert documentation.extract([Source("python", "pydoc_data.topics", path)]) == [
        Module("python", "pydoc_data.topics", ("It is used for conditional execution.",))
    ]


def test_near_duplicates_are_dropped_across_modules_and_the_first_is_kept(tmp_path: Path) -> None:
    shared = "Note that this function returns a copy of {} when it is called."
    files = []
    for name, own in (("a", "Only the first module says that."), ("b", ""), ("c", "The third has words of its own.")):
        path = tmp_path / f"{name}.py"
        path.write_text(f'"""{shared.format(name * 3 + "_x")} {own}"""')
        files.append(Source("package", name, path))
    assert documentation.extract(files) == [
        Module("package", "a", (shared.format("aaa_x"), "Only the first module says that.")),
        Module("package", "c", ("The third has words of its own.",)),
    ]


def test_extraction_does_not_depend_on_the_seed_of_hashes() -> None:
    files = [source for source in documentation.sources() if source.module.startswith(("email", "logging"))]
    code = (
        "from tokenizer.sources import documentation as d; "
        "print(d.extract([s for s in d.sources() if s.module.startswith(('email', 'logging'))]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONIOENCODING": "utf-8"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    assert shown.decode().strip() == str(documentation.extract(files))


def test_sources_are_the_standard_library_and_the_required_dependencies_without_tests() -> None:
    sources = documentation.sources()
    names = [(source.package, source.module) for source in sources]
    assert names == sorted(set(names))
    assert {"python", "torch", "numpy"} <= {package for package, _ in names}
    assert {package for package, _ in names}.isdisjoint({"pytest", "transformers", "ruff"})
    assert {("python", "json"), ("python", "json.decoder"), ("python", "argparse"), ("numpy", "numpy")} <= set(names)
    folders = {folder for _, name in names for folder in name.split(".")[:-1]}
    assert folders.isdisjoint({"test", "tests", "site-packages"})
    assert not [name for _, name in names if name.endswith("__init__")]


def test_the_fingerprint_follows_names_and_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.py"
    path.write_text('"""This is some prose."""')
    found = [Source("package", "a", path)]
    monkeypatch.setattr(documentation, "sources", lambda: found)
    first = documentation.fingerprint()
    assert documentation.fingerprint() == first
    assert len(first) == 64
    path.write_text('"""This is other prose."""')
    second = documentation.fingerprint()
    found[0] = Source("package", "b", path)
    assert len({first, second, documentation.fingerprint()}) == 3


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    documentation.sources.cache_clear()
    monkeypatch.setattr(metadata, "requires", absent)
    with pytest.raises(UserError, match=r"mlm is not installed: run `pip install -e \.`"):
        documentation.sources()
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=2", "nowhere-to-be-found>=1", 'x; extra == "test"'])
    with pytest.raises(UserError, match="nowhere-to-be-found is not installed"):
        documentation.packages()


def test_the_corpus_of_this_installation() -> None:
    modules = documentation.modules()
    names = [(module.package, module.name) for module in modules]
    assert names == sorted(set(names))

    sentences = Counter(sentence for module in modules for sentence in module.sentences)
    assert max(sentences.values()) == 1
    assert all(sentence == " ".join(sentence.split()) and 4 <= len(sentence.split()) <= 80 for sentence in sentences)
    assert not [sentence for sentence in sentences if any(mark in sentence for mark in ("``", ">>>", "://", ":math:"))]

    packages = documentation.packages()
    assert [package.name for package in packages] == sorted({package.name for package in packages})
    assert sum(package.words for package in packages) == sum(len(sentence.split()) for sentence in sentences)
    assert sum(package.modules for package in packages) == len(modules)
    python = next(package for package in packages if package.name == "python")
    assert python.words > 100_000
    assert python.version == ".".join(map(str, sys.version_info[:3]))
