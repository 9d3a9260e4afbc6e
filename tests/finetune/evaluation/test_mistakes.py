import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finetune.data.examples import Examples
from finetune.evaluation.report import write_mistakes

CLASSES = ("calm", "disaster")


def listed(path: Path, texts: Sequence[tuple[str, ...]], labels: list[int], second: list[float]) -> list[list[str]]:
    """Write the mistakes and read them back as a spreadsheet would; `second` is the second class's probability."""
    probabilities = np.stack([1 - np.array(second), second], axis=1)
    number = write_mistakes(path, Examples(tuple(texts), np.array(labels)), probabilities, CLASSES)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file, strict=True))
    assert len(rows) == number + 1
    return rows


def test_all_mistakes_are_listed_the_most_confident_first(tmp_path: Path) -> None:
    texts = [("right",), ("a bit wrong",), ("very wrong",), ("as wrong",), ("wrong the other way",)]
    rows = listed(tmp_path / "mistakes.csv", texts, [1, 1, 1, 1, 0], [0.9, 0.4, 0.125, 0.125, 0.75])
    assert rows == [
        ["confidence", "predicted", "true", "text"],
        ["0.8750", "calm", "disaster", "very wrong"],
        ["0.8750", "calm", "disaster", "as wrong"],
        ["0.7500", "disaster", "calm", "wrong the other way"],
        ["0.6000", "calm", "disaster", "a bit wrong"],
    ]


def test_pairs_have_a_column_for_the_second_text(tmp_path: Path) -> None:
    rows = listed(tmp_path / "a.csv", [("one", "two"), ("three", "four")], [0, 0], [0.1, 0.9])
    assert rows == [
        ["confidence", "predicted", "true", "text", "text_2"],
        ["0.9000", "disaster", "calm", "three", "four"],
    ]


def test_without_mistakes_there_is_a_header_alone(tmp_path: Path) -> None:
    assert listed(tmp_path / "a.csv", [("one",)], [0], [0.1]) == [["confidence", "predicted", "true", "text"]]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_quotes_separators_line_breaks_and_other_scripts_survive(tmp_path: Path) -> None:
    texts = [('he said "run", twice\r\nthen left\rand 산불 🔥',), ("half \ud83d a character",)]
    rows = listed(tmp_path / "a.csv", texts, [0, 0], [0.9, 0.8])
    assert [row[3] for row in rows[1:]] == ['he said "run", twice\nthen left\nand 산불 🔥', "half \\ud83d a character"]
    assert (tmp_path / "a.csv").read_bytes().startswith(b"\xef\xbb\xbfconfidence,predicted,true,text\r\n0.9000,dis")


def test_nothing_that_a_spreadsheet_would_run_is_left(tmp_path: Path) -> None:
    running = ['=HYPERLINK("http://x","y")', "+1+1", "-2", "@SUM(A1)", "\t=1", "\r=1", "  =1", "＝1", "\n@x"]
    harmless = ["one = two", "a@b", "'=1", ""]
    texts = [(text,) for text in running + harmless]
    rows = listed(tmp_path / "a.csv", texts, [0] * len(texts), [0.9] * len(texts))
    shown = [row[3] for row in rows[1:]]
    assert shown == [f"'{text}".replace("\r", "\n") for text in running] + harmless


def test_class_names_are_as_untrusted_as_texts(tmp_path: Path) -> None:
    write_mistakes(
        tmp_path / "a.csv", Examples((("one",),), np.array([1])), np.array([[0.9, 0.1]]), ("=cmd|'x'!A1", "-1")
    )
    assert (tmp_path / "a.csv").read_text(encoding="utf-8-sig").splitlines()[1] == "0.9000,'=cmd|'x'!A1,'-1,one"
