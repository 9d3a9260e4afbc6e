from pathlib import Path

import pytest

from configs import UserError
from finetune import texts

TABLE = """keyword,text
forest%20fire,Fire &amp; smoke near @someone http://t.co/abc
,  RT   #ForestFire!
flood,
"""
CLEANING = (
    "data.cleaning.html_entities=true",
    "data.cleaning.urls=replace",
    "data.cleaning.mentions=replace",
    "data.cleaning.hashtags=split",
    "data.cleaning.lower_case=true",
    "data.cleaning.prefix=keyword",
)


def test_texts_are_written_as_the_classifier_will_see_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, output = tmp_path / "test.csv", tmp_path / "texts.txt"
    table.write_text(TABLE)
    texts.main([*CLEANING, "--file", str(table), "--output", str(output)])
    assert output.read_text().splitlines() == ["forest fire: fire & smoke near @user url", "rt forest fire!"]
    assert capsys.readouterr().out.splitlines()[1:] == ["dropped: 1 empty texts"]


def test_the_texts_of_a_pair_stand_on_lines_of_their_own(tmp_path: Path) -> None:
    table, output = tmp_path / "pairs.tsv", tmp_path / "texts.txt"
    table.write_text("one\ttwo\na b\tc d\n")
    texts.main(["data.text=one", "data.pair=two", "--file", str(table), "--output", str(output)])
    assert output.read_text() == "a b\nc d\n"


def test_a_recipe_of_any_head_is_taken_and_only_its_data_section_is_read(tmp_path: Path) -> None:
    table, output, recipe = tmp_path / "test.csv", tmp_path / "texts.txt", tmp_path / "recipe.yaml"
    table.write_text(TABLE)
    recipe.write_text("data:\n  text: keyword\nhead:\n  pooling: cls\n")
    texts.main([str(recipe), "--file", str(table), "--output", str(output)])
    assert output.read_text() == "forest%20fire\nflood\n"
    with pytest.raises(UserError, match=r"data\.txet"):
        texts.main(["data.txet=a", "--file", str(table), "--output", str(tmp_path / "b.txt")])
    recipe.write_text("dta:\n  text: keyword\n")
    with pytest.raises(UserError, match=r"recipe\.yaml: unknown key dta: known: .*data"):
        texts.main([str(recipe), "--file", str(table), "--output", str(tmp_path / "b.txt")])
    with pytest.raises(UserError, match=r"dat\.text=a: only options of data are read here"):
        texts.main(["dat.text=a", "--file", str(table), "--output", str(tmp_path / "b.txt")])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    table, output = tmp_path / "test.csv", tmp_path / "texts.txt"
    table.write_text(TABLE)
    output.write_text("mine")
    with pytest.raises(UserError, match=r"texts\.txt"):
        texts.main([*CLEANING, "--file", str(table), "--output", str(output)])
    assert output.read_text() == "mine"
    with pytest.raises(UserError, match=r"texts\.csv"):
        texts.main([*CLEANING, "--file", str(table), "--output", str(tmp_path / "texts.csv")])
