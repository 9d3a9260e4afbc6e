"""Every recipe reads its data as it is handed out: the files here are made in the formats of the published ones."""

import json
from collections.abc import Sequence
from pathlib import Path

import openpyxl
import pytest

from configs import read, recipes
from finetune.config import FinetuneConfig
from finetune.data.examples import Examples
from finetune.data.labelled import Labelled
from mlm.config import PretrainConfig
from tests.tokenizer.samples import COMPRESSIONS, write
from tokenizer.cleaning import TextConfig

PAIRS = [("오늘은 비가 옵니다.", "It is raining today."), ("책을 읽어요.", "I am reading a book.")]


def documents(recipe: str, *settings: str) -> list[str]:
    config = read(PretrainConfig, recipes.find(recipe, "pretrain"), settings)
    return [document.text for document in config.text.documents()]


def workbook(folder: Path, name: str, rows: Sequence[Sequence[object]]) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(folder / name)
    return folder / name


def ai_hub(folder: Path) -> list[Path]:
    """Return the corpus as workbooks, which differ in their columns, and as .csv and .json."""
    return [
        workbook(
            folder, "1_구어체(1).xlsx", [("SID", "원문", "번역문"), *((n, *pair) for n, pair in enumerate(PAIRS))]
        ),
        workbook(folder, "3_문어체.xlsx", [("ID", "원문", "번역문", "번역문 Review"), (7, *PAIRS[1], None)]),
        write(folder, "a.csv", "\ufeffsn,원문,번역문\n" + "".join(f'1,"{ko}","{en}"\n' for ko, en in PAIRS)),
        write(folder, "a.json", json.dumps({"data": [{"sn": 1, "원문": ko, "번역문": en} for ko, en in PAIRS]})),
    ]


def test_the_korean_english_corpus_is_read_from_all_its_formats(tmp_path: Path) -> None:
    first, second, *others = ai_hub(tmp_path)
    both = [text for pair in PAIRS for text in pair]
    assert documents("korean_english", f"text.source.paths={tmp_path}/*.xlsx") == [*both, *PAIRS[1]]
    for path in (first, *others):
        assert documents("korean_english", f"text.source.paths={path}") == both
    english = documents("korean_english", f"text.source.paths={second}", "text.source.columns=번역문")
    assert english == [PAIRS[1][1]]


def test_subsets_of_the_pile_are_chosen_by_name(tmp_path: Path) -> None:
    sets = ["Wikipedia (en)", "Books3", "FreeLaw", "Github"]
    lines = [json.dumps({"text": f"A text of {name}.", "meta": {"pile_set_name": name}}) for name in sets]
    path = write(tmp_path, "00.jsonl.zst", COMPRESSIONS[".zst"]("\n".join(lines).encode()))
    assert documents("pile", f"text.source.paths={path}") == ["A text of Wikipedia (en).", "A text of FreeLaw."]
    only = "text.source.only={meta.pile_set_name: Github}"
    assert documents("pile", f"text.source.paths={path}", only) == ["A text of Github."]


FORMATS = {
    "cola": (
        [("data.train", "in_domain_train.tsv", 'gj04\t1\t\tShe said "no".\nks08\t0\t*\tHim sleeps.\n')],
        [('She said "no".', "1"), ("Him sleeps.", "0")],
    ),
    "disaster_tweets": (
        [("data.train", "train.csv", 'id,keyword,location,text,target\n1,fire,,"Two\nlines",1\n4,,"a, b",Fine,0\n')],
        [("fire: two lines", "1"), ("fine", "0")],
    ),
    "imdb": (
        [("data.train", "train.csv", 'text,label\n"Good,<br /><br />really",1\nBad,0\n')],
        [("Good,<br /><br />really", "1"), ("Bad", "0")],
    ),
    "naver_reviews": (
        [("data.train", "ratings_train.tsv", 'id\tdocument\tlabel\n1\t좋아요 "최고"\t1\n2\t별로\t0\n')],
        [('좋아요 "최고"', "1"), ("별로", "0")],
    ),
}


@pytest.mark.parametrize("recipe", FORMATS)
def test_labelled_data_is_read_as_it_is_handed_out(tmp_path: Path, recipe: str) -> None:
    files, expected = FORMATS[recipe]
    settings = [f"{key}={write(tmp_path, name, content)}" for key, name, content in files]
    config = read(FinetuneConfig, recipes.find(recipe, "finetune"), settings)
    assert isinstance(config.data, Labelled)
    data = config.data.load(TextConfig())
    assert examples(data.train, data.class_names) == expected


def test_cola_of_glue_is_read_as_it_is_handed_out(tmp_path: Path) -> None:
    train = write(tmp_path, "train.tsv", "gj04\t1\t\tShe sleeps.\ngj04\t0\t*\tHim sleeps.\n")
    test = write(tmp_path, "dev.tsv", "gj04\t1\t\tHe sleeps.\ngj04\t0\t*\tHer sleeps.\n")
    config = read(FinetuneConfig, recipes.find("cola", "finetune"), [f"data.train={train}", f"data.test={test}"])
    assert isinstance(config.data, Labelled)
    data = config.data.load(TextConfig())
    assert data.test is not None
    assert examples(data.test, data.class_names) == [("He sleeps.", "1"), ("Her sleeps.", "0")]


def examples(found: Examples, class_names: Sequence[str]) -> list[tuple[str, str]]:
    return [(text[0], class_names[label]) for text, label in zip(found.texts, found.labels, strict=True)]
