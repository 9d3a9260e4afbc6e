from pathlib import Path
from typing import Any

import pytest

from configs import UserError, command, read, recipes
from finetune import cnn_head, texts
from mlm import pretrain
from mlm.config import PretrainConfig

FOLDER = Path(recipes.__file__).parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_recipe_is_found_by_its_name() -> None:
    for path in FOLDER.glob("*/*.yaml"):
        assert recipes.find(path.stem, path.parent.name) == path  # type: ignore[arg-type]


def test_commands_take_a_name_anywhere(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.main(["modern", "runs=there", "--print-config"])
    assert {"name: modern", "runs: there"} <= set(capsys.readouterr().out.splitlines())
    cnn_head.main(["cola", "--print-config"])
    assert "name: cola" in capsys.readouterr().out.splitlines()
    (elsewhere / "table.csv").write_text("id,text\n1,a http://b.c text\n")
    texts.main(["disaster_tweets", "data.pair=null", "--file", "table.csv", "--output", "a.txt"])
    assert (elsewhere / "a.txt").read_text().strip()


def test_a_file_of_that_name_wins_and_a_folder_does_not(elsewhere: Path) -> None:
    (elsewhere / "modern").mkdir()
    assert recipes.find("modern", "pretrain") == FOLDER / "pretrain" / "modern.yaml"
    (elsewhere / "bert").write_text("name: mine\n")
    assert command.split(["bert"], "pretrain") == (Path("bert"), [])
    assert recipes.find("/dev/null", "pretrain") == Path("/dev/null")


def test_a_folder_of_data_does_not_hide_a_suite_of_its_name_and_one_of_recipes_does(elsewhere: Path) -> None:
    (elsewhere / "kim2014").mkdir()
    assert recipes.folder("kim2014", "finetune") == FOLDER / "finetune" / "kim2014"
    (elsewhere / "kim2014" / "mine.yaml").write_text("name: mine\n")
    assert recipes.folder("kim2014", "finetune") == Path("kim2014")


@pytest.mark.parametrize("word", ["modren", "configs/pretrain/moderm.yaml", "modern.yaml"])
def test_an_unknown_name_lists_the_known_ones_and_the_nearest(word: str) -> None:
    with pytest.raises(UserError, match="did you mean modern") as caught:
        recipes.find(word, "pretrain")
    assert word in str(caught.value)
    assert [name for name in recipes.known("pretrain") if name not in str(caught.value)] == []


@pytest.mark.parametrize("word", ["", "x" * 5000, "a\0b", "cola"])
def test_a_word_that_is_no_name_is_one_line(word: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.find(word, "pretrain")
    assert "\n" not in str(caught.value)


def test_help_lists_the_recipes_with_their_first_lines(capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[tuple[Any, recipes.Task]] = [(pretrain.main, "pretrain"), (cnn_head.main, "finetune")]
    for main, task in commands:
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["--help"])
        shown = capsys.readouterr().out.splitlines()
        for name, path in recipes.known(task).items():
            (line,) = [line for line in shown if line.startswith(f"  {name} ")]
            assert line.endswith(".")  # a whole sentence stands in the first line
            assert f"# {line.removeprefix(f'  {name} ').strip()}\n" in path.read_text(encoding="utf-8")


def test_babylm_differs_from_laptop_in_its_length_alone() -> None:
    laptop, babylm = (
        read(PretrainConfig, recipes.find(name, "pretrain"), []).model_dump() for name in ("laptop", "babylm")
    )
    assert {key for key in laptop if laptop[key] != babylm[key]} == {"name", "text", "train"}
    text = {key for key, value in laptop["text"].items() if value != babylm["text"][key]}
    train = {key for key, value in laptop["train"].items() if value != babylm["train"][key]}
    assert (text, train) == ({"most_words"}, {"budget", "keep", "intervals"})
