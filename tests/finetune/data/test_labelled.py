import itertools
import json
import os
import re
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, normalizers

from configs import UserError, read
from finetune.config import FinetuneConfig
from finetune.data.bigram_shift import BigramShift
from finetune.data.cleaning import Cleaning
from finetune.data.examples import Dataset, Examples
from finetune.data.labelled import Labelled
from finetune.data.splits import Folds, Fractions
from tests.tokenizer.samples import files, prose, write_lines
from tokenizer.cleaning import AsRead, TextConfig, as_read_by
from tokenizer.vocabulary import VocabularyConfig

LARGE = 2**63
DATA = Path(os.environ.get("MLM_TEST_DATA", ""))
needs_data = pytest.mark.skipif(
    "MLM_TEST_DATA" not in os.environ, reason="MLM_TEST_DATA names no folder with real data"
)


def table(folder: Path, name: str, *rows: str) -> str:
    return str(write_lines(folder / f"{name}.csv", ["text,label", *rows]))


def load(**settings: object) -> Dataset:
    return Labelled(**settings).load(TextConfig())  # type: ignore[arg-type]


def shown(data: Dataset, part: Examples | None) -> list[tuple[str, str]]:
    assert part is not None
    return [(text[0], data.class_names[label]) for text, label in zip(part.texts, part.labels, strict=True)]


def test_tasks_are_chosen_by_kind(tmp_path: Path) -> None:
    path = table(tmp_path, "a", "one,x", "two,y")
    given = [f"data.train={path}", "data.hub_splits.test=validation", "data.cleaning.urls=replace"]
    task = read(FinetuneConfig, None, ["data.kind=labelled", *given]).data
    assert isinstance(task, Labelled)
    assert (task.hub_splits.test, task.cleaning.urls) == ("validation", "replace")
    assert shown(task.load(TextConfig()), task.load(TextConfig()).train) == [("one", "x"), ("two", "y")]


def test_classes_are_sorted_as_numbers_or_as_text_or_as_given(tmp_path: Path) -> None:
    numbers = table(tmp_path, "a", "one,10", "two,9", "three,-1")
    assert load(train=numbers).class_names == ("-1", "9", "10")
    assert load(train=table(tmp_path, "b", "one,b", "two,10", "three,9")).class_names == ("10", "9", "b")
    data = load(train=numbers, classes=("9", "10", "-1"))
    assert data.train.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("duplicates", "contradictions", "kept", "counts"),
    [
        ("drop", "drop", ["a", "B 1", "d"], {"duplicated texts": 1, "texts with contradicting labels": 5}),
        ("keep", "drop", ["a", "A http://x.y", "B 1", "d"], {"texts with contradicting labels": 5}),
        ("drop", "majority", ["a", "B 1", "c", "d"], {"duplicated texts": 2, "texts with contradicting labels": 3}),
        ("keep", "keep", ["a", "A http://x.y", "B 1", "c", "C", "@me c", "e", "e", "d"], {}),
        ("keep", "majority", ["a", "A http://x.y", "B 1", "c", "C", "d"], {"texts with contradicting labels": 3}),
    ],
)
def test_repeated_and_contradicting_texts_are_dropped_and_counted(
    tmp_path: Path, duplicates: str, contradictions: str, kept: list[str], counts: dict[str, int]
) -> None:
    rows = ["a,0", "A http://x.y,0", "B 1,1", "c,0", "C,0", "@me c,1", "e,0", "e,1", "d,1", " ,0"]
    data = load(train=table(tmp_path, "a", *rows), duplicates=duplicates, contradictions=contradictions)
    assert [text for (text,) in data.train.texts] == kept
    assert data.counts == counts | {"empty texts": 1}
    groups = data.train.groups
    assert groups is not None
    assert len(set(groups.tolist())) == len({text.casefold().split(" http")[0].removeprefix("@me ") for text in kept})


def test_training_texts_of_the_other_parts_are_dropped_whatever_their_prefix(tmp_path: Path) -> None:
    lines = {
        "train": ["k,a,0", "k,b,0", "k,c,1", "k,d,1"],
        "validation": ["k,c http://x.y,1", "k,B,0"],
        "test": ["j,b,0"],
    }
    paths = {
        name: str(write_lines(tmp_path / f"{name}.csv", ["keyword,text,label", *rows])) for name, rows in lines.items()
    }
    data = load(**paths, cleaning=Cleaning(prefix=("keyword",)))
    assert shown(data, data.train) == [("k: a", "0"), ("k: d", "1")]
    assert shown(data, data.validation) == [("k: c http://x.y", "1")]
    assert shown(data, data.test) == [("j: b", "0")]
    assert data.counts == {
        "training texts that are also in the test data": 1,
        "training texts that are also in the validation data": 1,
        "validation texts that are also in the test data": 1,
    }


def alike(number: int) -> list[tuple[str, str, Cleaning, AsRead]]:
    """Return pairs of texts that cleaning or the encoder makes equal, though their identities differ."""
    nfc, lower = as_read_by(normalizers.NFC()), as_read_by(normalizers.Sequence([normalizers.NFKC()]))
    return [
        (f"See Number {number} burn", f"See #Number {number} burn", Cleaning(hashtags="split"), str),
        (f"So {number} coool!!!", f"So {number} coooool!!!!!", Cleaning(longest_repeat=2), str),
        (f"caf\u00e9 {number}", f"cafe\u0301 {number}", Cleaning(), nfc),
        (f"the file {number}", f"the \ufb01le {number}", Cleaning(), lower),
    ]


@pytest.mark.parametrize("kind", range(4))
def test_texts_that_are_read_alike_are_one_in_training_and_across_files(tmp_path: Path, kind: int) -> None:
    forms = [alike(number)[kind] for number in range(40)]
    _, _, cleaning, as_read = forms[0]
    both = [f"{form},{number % 2}" for number, (one, other, _, _) in enumerate(forms) for form in (one, other)]
    settings: dict[str, object] = {"train": table(tmp_path, "train", *both), "cleaning": cleaning}
    data = Labelled(**settings).load(TextConfig(), as_read)  # type: ignore[arg-type]
    assert (len(data.train), data.counts) == (40, {"duplicated texts": 40})
    kept = Labelled(**settings, duplicates="keep").load(TextConfig(), as_read)  # type: ignore[arg-type]
    assert len(kept.train) == 80
    for split in [*Folds(folds=4).splits(kept), *Fractions(test=0.3).splits(kept)]:
        sides = [{as_read(text) for (text,) in part.texts} for part in (split.train, split.validation, split.test)]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 40
    test = table(tmp_path, "test", *(f"{other},{number % 2}" for number, (_, other, _, _) in enumerate(forms[:10])))
    validation = table(tmp_path, "dev", *(f"{other},0" for _, other, _, _ in forms[5:20]))
    data = Labelled(**settings, test=test, validation=validation).load(TextConfig(), as_read)  # type: ignore[arg-type]
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (20, 10)
    assert data.counts["training texts that are also in the test data"] == 10
    opposite = [f"{form},{label}" for one, other, _, _ in forms for form, label in ((one, 0), (other, 1))]
    settings["train"] = table(tmp_path, "opposite", *opposite, "left over,0", "and another,1")
    data = Labelled(**settings).load(TextConfig(), as_read)  # type: ignore[arg-type]
    assert [text for (text,) in data.train.texts] == ["left over", "and another"]
    assert data.counts["texts with contradicting labels"] == 80


def test_the_hash_of_examples_is_of_their_texts_as_they_are_given_and_of_their_labels(tmp_path: Path) -> None:
    rows = ["a #big fire at http://t.co/x,1", "all sooo calm @me,0"]
    path = table(tmp_path, "train", *rows)
    cleanings = (
        Cleaning(),
        Cleaning(urls="replace", mentions="remove", hashtags="split", longest_repeat=2, lower_case=True),
    )
    hashes = {load(train=path, cleaning=cleaning).train.sha256 for cleaning in cleanings}
    assert len(hashes) == 1
    others = table(tmp_path, "labels", rows[0].replace(",1", ",0"), rows[1].replace(",0", ",1"))
    fewer = load(train=path).train.take([0])
    assert len(hashes | {load(train=others).train.sha256, fewer.sha256}) == 3


@pytest.mark.parametrize(
    ("again", "cleaning", "as_read"),
    [
        ("CAFE\u0301 ON FIRE", Cleaning(), as_read_by(normalizers.NFC())),
        ("\uff43\uff41\uff46\u00e9 on \ufb01re http://x.y/2", Cleaning(), as_read_by(normalizers.NFKC())),
        ("@you #Caf\u00e9 on #Fire http://x.y/2", Cleaning(hashtags="split"), str),
    ],
)
def test_what_is_read_is_equal_but_for_case_addresses_and_mentions_too(
    tmp_path: Path, again: str, cleaning: Cleaning, as_read: AsRead
) -> None:
    train = table(tmp_path, "train", "caf\u00e9 on fire http://x.y/1,0", f"{again},0", "else,1")
    data = Labelled(train=train, cleaning=cleaning).load(TextConfig(), as_read)
    assert (len(data.train), data.counts) == (2, {"duplicated texts": 1})


def test_equality_reaches_through_a_third_text_and_through_a_pair_and_its_prefix(tmp_path: Path) -> None:
    cleaning = Cleaning(hashtags="split", prefix=("keyword",))
    lines = ["keyword,one,two,label", "k,#Big Fire,here,0", "j,Big Fire,here,0", ",BIG FIRE http://x.y,HERE @me,0"]
    lines += ["k,big fire,here,0", ",k: Big Fire,here,0", "k,#Big Fire,there,1", "k,Big Fire,there,1", "k,else,there,0"]
    path = str(write_lines(tmp_path / "a.csv", lines))
    data = Labelled(train=path, text="one", pair="two", cleaning=cleaning).load(TextConfig())
    assert data.train.texts == (("k: Big Fire", "here"), ("k: Big Fire", "there"), ("k: else", "there"))
    assert data.counts["duplicated texts"] == 5


def test_texts_of_which_the_encoder_reads_nothing_are_not_all_equal(tmp_path: Path) -> None:
    as_read = as_read_by(normalizers.Replace(Regex("[0-9]"), ""))
    data = Labelled(train=table(tmp_path, "a", "1,0", "2,1", "a1,0", "a2,0")).load(TextConfig(), as_read)
    assert [text for (text,) in data.train.texts] == ["1", "2", "a1"]


def test_pairs_are_the_same_if_both_texts_are(tmp_path: Path) -> None:
    rows = ["a,b,yes", "a,c,no", "A,B,yes", "b,,no", "b,a,no"]
    task = Labelled(train=str(write_lines(tmp_path / "a.csv", ["one,two,label", *rows])), text="one", pair="two")
    data = task.load(TextConfig())
    assert data.train.texts == (("a", "b"), ("a", "c"), ("b", "a"))
    assert data.counts == {"duplicated texts": 1, "empty texts": 1}
    assert task.reader.columns == ("one", "two")
    assert task.reader.texts({"one": " x", "two": "y "}) == ("x", "y")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a,0", "b,", *["c,"] * 6], None, "train.csv.*2, 3, 4, 5, 6 and 2 more.*known: 0"),
        (["a,0", "b,1"], ["c,2", "d,1"], "test.csv.*row 1 .known: 0, 1.*data.classes"),
        (["a,0", "b,1"], ["c,"], "test.csv.*row 1"),
        (["a,0", "b,0"], None, "train.csv.*'0'"),
        ([" ,0", " ,1"], None, "train.csv.*2 rows.*'text'"),
        (["a,0", "b,1"], ["A,0", "B,1"], "train.csv.*test.csv"),
        (["a,0", "a,1", "b,1"], None, "train.csv.*class '0'.*2 texts with contradicting"),
    ],
)
def test_data_that_cannot_be_learned_from_are_refused(
    tmp_path: Path, train: list[str], test: list[str] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(train=table(tmp_path, "train", *train), test=test and table(tmp_path, "test", *test))
    assert "\n" not in str(caught.value)


def test_a_mistake_names_no_whole_texts_where_the_label_is_one(tmp_path: Path) -> None:
    rows = [f"{name},{name * 30_000}" for name in "abc"]
    with pytest.raises(UserError, match=r"row 4 .known: aaaa.*\.\.\., bbbb") as caught:
        load(train=table(tmp_path, "train", *rows, "d,"))
    assert len(str(caught.value)) < 500


def test_missing_columns_and_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train.*data\.hub"):
        load()
    with pytest.raises(UserError, match=r"'keyword'.* text, label"):
        load(train=table(tmp_path, "a", "one,1"), cleaning=Cleaning(prefix=("keyword",)))
    with pytest.raises(UserError, match="classes = a, a"):
        read(FinetuneConfig, None, ["data.kind=labelled", "data.classes=[a, a]"])


def test_bigram_shift_swaps_two_inner_neighbors_in_half_of_the_sentences(tmp_path: Path) -> None:
    corpus = files(write_lines(tmp_path / "a.txt", prose(1500)), heldout_share=0.2)
    task = BigramShift(train_sentences=400, test_sentences=100)
    data = task.load(corpus)
    assert (data.class_names, data.validation) == (("kept", "swapped"), None)
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (400, 100)
    whole = {sentence for text in prose(1500) for sentence in re.split(r"(?<=\d\.) ", text)}
    for part in (data.train, data.test):
        assert part.labels.sum() * 2 == len(part) == len({tuple(sorted(text.split())) for (text,) in part.texts})
        for (text,), label in zip(part.texts, part.labels, strict=True):
            words = text.split(" ")
            assert 5 <= len(words) <= 25
            assert (text in whole) == (label == 0)
            swaps = [[*words[:n], words[n + 1], words[n], *words[n + 2 :]] for n in range(1, len(words) - 2)]
            assert label == 0 or any(" ".join(swap) in whole for swap in swaps)
    again, other = task.load(corpus), BigramShift(train_sentences=400, test_sentences=100, seed=1).load(corpus)
    assert again.train.texts == data.train.texts != other.train.texts
    assert np.array_equal(again.train.labels, data.train.labels)


def test_bigram_shift_keeps_texts_that_are_read_alike_on_one_side(tmp_path: Path) -> None:
    lines = [f"Our {a} likes the {b} café near {c}." for a in "pqrstuvw" for b in "abcdefgh" for c in "klmnopqr"]
    forms = [form for line in lines for form in (line, unicodedata.normalize("NFD", line).upper())]
    as_read = as_read_by(VocabularyConfig(normalisation="nfc", lowercase=True).normalizer())
    data = BigramShift(test_sentences=100).load(
        files(write_lines(tmp_path / "a.txt", forms), heldout_share=0.3, deduplicate="none"), as_read
    )
    assert data.test is not None
    seen = [{tuple(sorted(as_read(text).split())) for (text,) in part.texts} for part in (data.train, data.test)]
    assert not seen[0] & seen[1]
    assert len(data.train) == len(seen[0]) > 200


def test_bigram_shift_drops_what_swapping_makes_equal(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(300)]
    lines = [f"Here {a} {b} {a} ends." for a, b in itertools.pairwise(words)]
    swapped = [f"Here {b} {a} {a} ends." for a, b in itertools.pairwise(words)]
    corpus = files(write_lines(tmp_path / "a.txt", [*lines, *swapped]), heldout_share=0.4)
    data = BigramShift(test_sentences=100).load(corpus)
    assert data.test is not None
    assert not set(data.train.texts) & set(data.test.texts)
    assert len(set(data.train.texts)) == len(data.train)
    assert data.counts["training texts that are also in the test data"] > 0
    assert data.counts["texts with contradicting labels"] > 0


def test_bigram_shift_needs_enough_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"heldout.*data.kind=labelled"):
        BigramShift().load(files(write_lines(tmp_path / "a.txt", prose(300))))


@needs_data
def test_disaster_tweets_lose_repeats_and_contradictions_and_folds_share_no_text() -> None:
    cleaning = Cleaning(html_entities=True, urls="replace", mentions="replace", prefix=("keyword",))
    path = str(DATA / "disaster_tweets" / "train.csv")
    data = load(train=path, label="target", cleaning=cleaning)
    assert sum(data.counts.values()) + len(data.train) == 6082
    assert data.counts["texts with contradicting labels"] == 160
    kept = load(train=path, label="target", cleaning=cleaning, duplicates="keep")
    assert len(kept.train) == len(data.train) + data.counts["duplicated texts"]
    groups: dict[tuple[str, ...], set[int]] = {}
    assert kept.train.groups is not None
    for text, group in zip(kept.train.texts, kept.train.groups.tolist(), strict=True):
        groups.setdefault(text, set()).add(group)
    for split in Folds().splits(kept):
        sides = [
            set.union(*(groups[text] for text in part.texts)) for part in (split.train, split.validation, split.test)
        ]
        assert sum(map(len, sides)) >= len(data.train)
        assert not sides[2] & (sides[0] | sides[1])
        assert not sides[0] & sides[1]


@needs_data
def test_cola_is_read_from_its_raw_files() -> None:
    folder = DATA / "cola"
    data = load(
        train=str(folder / "in_domain_train.tsv"),
        test=str(folder / "in_domain_dev.tsv"),
        text="sentence",
        header=("source", "label", "mark", "sentence"),
    )
    assert data.test is not None
    assert (data.class_names, len(data.test)) == (("0", "1"), 527)
    assert len(data.train) + sum(data.counts.values()) == 8551


def json_lines(folder: Path, *labels: object) -> str:
    rows = [json.dumps({"text": f"text {number}", "label": label}) for number, label in enumerate(labels)]
    return str(write_lines(folder / "a.jsonl", rows))


def test_equal_numbers_are_one_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = load(train=json_lines(tmp_path, 1, 0, 1.0, 0.0, -0.0, "1", 10, 9.5))
    assert (data.class_names, data.train.labels.tolist()) == (("0", "1", "9.5", "10"), [1, 0, 1, 0, 0, 1, 3, 2])
    data = load(train=table(tmp_path, "b", "a,1", "b,0", "c,1.0", "d,0.0", "e,1e0", "f,+1"))
    assert (data.class_names, data.train.labels.tolist()) == (("0", "1"), [1, 0, 1, 0, 1, 1])
    assert "b.csv: equal numbers are one class: +1 is 1, 0.0 is 0, 1.0 is 1" in caplog.text
    files = {"train": ["a,1.0", "b,0.0"], "validation": ["c,0", "d,1"], "test": ["e,1.00", "f,00"]}
    paths = {name: table(tmp_path, name, *rows) for name, rows in files.items()}
    with pytest.raises(UserError, match=r"test\.csv: an unknown label in row 2"):
        load(**paths)
    table(tmp_path, "test", "e,1.00", "f,0e0")
    data = load(**paths)
    assert data.class_names == ("0.0", "1.0")
    assert (shown(data, data.validation), shown(data, data.test)) == (
        [("c", "0.0"), ("d", "1.0")],
        [("e", "1.0"), ("f", "0.0")],
    )
    named = load(train=table(tmp_path, "d", "a,1.1", "b,1.10", "c,1.100"), classes=("1.1", "1.10", "1.100"))
    assert named.train.labels.tolist() == [0, 1, 2]


def test_labels_are_as_written_where_not_all_are_numbers(tmp_path: Path) -> None:
    assert load(train=table(tmp_path, "a", "a,1", "b,1.0", "c,x")).class_names == ("1", "1.0", "x")
    assert load(train=table(tmp_path, "b", "a,1", "b,01", "c,1.0", "d,001")).class_names == ("001", "01", "1", "1.0")
    assert load(train=json_lines(tmp_path, True, False, 1, 0)).class_names == ("0", "1", "False", "True")
    assert load(train=json_lines(tmp_path, "nan", 1, "Infinity", 0)).class_names == ("0", "1", "Infinity", "nan")


def test_thousands_of_classes_take_hardly_longer_than_two(tmp_path: Path) -> None:
    seconds = {}
    for count in (2, 10_000):
        path = table(tmp_path, f"c{count}", *(f"row {number},class {number % count}" for number in range(20_000)))
        tries = []
        for _ in range(3):  # the best of them, for other processes may disturb one
            start = time.process_time()
            assert len(load(train=path, label="label").class_names) == count
            tries.append(time.process_time() - start)
        seconds[count] = min(tries)
    assert seconds[10_000] < 2 * seconds[2]


def test_the_order_of_classes_has_no_chance_in_it(tmp_path: Path) -> None:
    codes = [f"{'0' * zeros}{value}" for value in range(1, 8) for zeros in range(3, -1, -1)]
    rows = [f"text {number},{code}" for number, code in enumerate(reversed(codes))]
    assert load(train=table(tmp_path, "a", *rows)).class_names == tuple(codes)
    values = ["-1e3", "-2.5", "0", "0.5", "3", "20", "1e2"]
    rows = [f"text {number},{value}" for number, value in enumerate(sorted(values))]
    assert load(train=table(tmp_path, "b", *rows)).class_names == tuple(values)
    assert load(train=json_lines(tmp_path, LARGE + 1, LARGE, LARGE - 1)).class_names == (
        str(LARGE - 1),
        str(LARGE),
        str(LARGE + 1),
    )


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_each_part_is_decoded_by_itself(tmp_path: Path, encoding: str) -> None:
    train = tmp_path / "train.csv"
    train.write_text("text,label\nsong,1\ncaf\u00e9,0\n", encoding="latin-1")
    test = tmp_path / "test.csv"
    test.write_text("text,label\nna\u00efve,1\n", encoding=encoding)
    data = load(train=str(train), test=str(test), encoding="latin-1")
    assert shown(data, data.train) == [("song", "1"), ("caf\u00e9", "0")]
    assert shown(data, data.test) == [("na\u00efve", "1")]
