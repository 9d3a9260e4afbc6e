"""Files of any name are taken, or refused in one line before anything is built."""

import os
from pathlib import Path

import pytest

from configs import UserError, command, read
from finetune.config import FinetuneConfig
from finetune.data.labelled import Labelled
from mlm.config import PretrainConfig
from tokenizer import encode, train
from tokenizer.sources import Files

ODD = os.fsdecode(b"caf\xe9.txt")
NAMES = (
    "new\nline.txt",
    "q\"'.txt",
    "*?[x].txt",
    " sp ace.txt",
    "a=b.txt",
    "-dash.txt",
    "한국어.txt",
    "x" * 251 + ".txt",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("A sentence.\n")
    source = read(PretrainConfig, None, ["text.source.kind=files", f"text.source.paths={name}"]).text.source
    assert isinstance(source, Files)
    monkeypatch.chdir("/")
    with pytest.raises(UserError):
        list(source.documents())
    monkeypatch.chdir(tmp_path)
    whole = source.absolute()
    monkeypatch.chdir("/")
    assert [document.text.strip() for document in whole.documents()] == ["A sentence."]


def test_a_pattern_holds_in_any_directory_even_under_a_folder_that_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("[1]", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"In {name}.\n")
    monkeypatch.chdir(tmp_path / "[1]")
    whole = Files(paths=("*.txt", str(tmp_path / "1" / "?.txt"))).absolute()
    monkeypatch.chdir("/")
    assert [document.text.strip() for document in whole.documents()] == ["In [1].", "In 1."]


@pytest.mark.parametrize(
    ("model", "override"),
    [
        (PretrainConfig, f"text.source.paths={ODD}"),
        (PretrainConfig, f"text.source.paths=[a.txt, {ODD}]"),
        (PretrainConfig, r'text.source.paths=["caf\udce9.txt"]'),
        (PretrainConfig, f"runs={ODD}"),
        (PretrainConfig, f"start_from={ODD}"),
        (FinetuneConfig, f"data.train={ODD}"),
        (FinetuneConfig, f"encoder.run={ODD}"),
    ],
)
def test_a_name_that_is_no_text_is_refused(model: type[PretrainConfig | FinetuneConfig], override: str) -> None:
    kinds = {"text": "text.source.kind=files", "data": "data.kind=labelled"}
    with pytest.raises(UserError, match=rf"^{override.split('=')[0]} = .*not UTF-8"):
        read(model, None, [*filter(None, [kinds.get(override.split(".")[0])]), override])


def test_commands_of_the_tokenizer_refuse_it_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(ODD).write_text("A sentence.\n")
    for main in (train.main, encode.main):
        with pytest.raises(UserError, match="not UTF-8"):
            main([ODD, "--output", "out", *(["--tokenizer", "t.json"] if main is encode.main else [])])
    assert os.listdir() == [ODD]  # noqa: PTH208


@pytest.mark.parametrize("model", [PretrainConfig, FinetuneConfig])
def test_a_name_too_long_for_a_directory_is_refused(model: type[PretrainConfig | FinetuneConfig]) -> None:
    with pytest.raises(UserError, match=r"^name = "):
        read(model, None, [f"name={'n' * 201}"])


@pytest.mark.parametrize("name", ["." * 9 + "csv", "한국어.csv", "x" * 251 + ".csv", "-\n-.csv"])
def test_data_of_any_name_gives_the_name_of_a_run(name: str) -> None:
    title = Labelled(train=name).title()
    assert read(FinetuneConfig, None, [f"name={title}"]).name == title


def test_a_recipe_may_have_an_equals_sign_in_its_name_and_an_option_may_be_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("seed=3.yaml").write_text("train:\n  seed: 3\n")
    long = f"text.source.paths=[{', '.join(['a.txt'] * 200)}]"
    words = ["seed=3.yaml", "seed=4.yaml", long]
    assert command.split(words, "pretrain") == (Path("seed=3.yaml"), words[1:])
