from collections import Counter

import numpy as np
import pytest

from configs import UserError
from finetune.data.examples import Dataset, DataSplit, Examples
from finetune.data.splits import Folds, Fractions


def examples(counts: tuple[int, ...], name: str = "text", repeats: int = 1) -> Examples:
    labels = np.repeat(np.arange(len(counts)), counts).repeat(repeats)
    texts = tuple((f"{name} {place // repeats}",) for place in range(len(labels)))
    return Examples(texts, labels)


def dataset(train: Examples, validation: Examples | None = None, test: Examples | None = None) -> Dataset:
    return Dataset(tuple("abc"[: train.labels.max() + 1]), train, validation, test, {})


def parts(split: DataSplit) -> list[set[tuple[str, ...]]]:
    return [set(split.train.texts), set(split.validation.texts), set(split.test.texts)]


@pytest.mark.parametrize("repeats", [1, 3])
def test_fractions_keep_the_shares_of_parts_and_classes_and_repeated_texts_together(repeats: int) -> None:
    data = dataset(examples((600, 300, 100), repeats=repeats))
    (split,) = Fractions().splits(data)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [
        800 * repeats,
        100 * repeats,
        100 * repeats,
    ]
    assert Counter(split.test.labels.tolist()) == {0: 60 * repeats, 1: 30 * repeats, 2: 10 * repeats}
    assert Counter(split.validation.labels.tolist()) == Counter(split.test.labels.tolist())
    train, validation, test = parts(split)
    assert train | validation | test == set(data.train.texts)
    assert len(train) + len(validation) + len(test) == len(set(data.train.texts))


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_share_of_the_training_part_leaves_the_others_as_they_were(repeats: int) -> None:
    data = dataset(examples((600, 300, 100), repeats=repeats))
    (whole,), (split,) = Fractions().splits(data), Fractions(train=0.25).splits(data)
    assert parts(split)[1:] == parts(whole)[1:]
    assert set(split.train.texts) < set(whole.train.texts)
    assert Counter(split.train.labels.tolist()) == {0: 120 * repeats, 1: 60 * repeats, 2: 20 * repeats}


def test_every_text_is_tested_in_one_fold() -> None:
    data = dataset(examples((60, 40)))
    splits = Folds(folds=5).splits(data)
    assert [split.fold for split in splits] == [0, 1, 2, 3, 4]
    assert sorted(text for split in splits for text in split.test.texts) == sorted(data.train.texts)
    for split in splits:
        assert Counter(split.test.labels.tolist()) == {0: 12, 1: 8}
        assert (len(split.train), len(split.validation)) == (72, 8)
        assert sum(map(len, parts(split))) == len(set.union(*parts(split))) == 100


@pytest.mark.parametrize("splitting", [Folds(folds=5, validation=0), Fractions(validation=0)])
def test_no_validation_part_is_held_back_where_none_is_wanted(splitting: Folds | Fractions) -> None:
    data = dataset(examples((60, 40)))
    for split in splitting.splits(data):
        assert len(split.validation) == 0
        assert set(split.train.texts) == set(data.train.texts) - set(split.test.texts)


def test_groups_stay_on_one_side_though_their_texts_differ() -> None:
    plain = examples((100, 100))
    groups = np.arange(200) // 4
    data = dataset(Examples(plain.texts, plain.labels, groups))
    group_of = dict(zip(plain.texts, groups.tolist(), strict=True))
    for split in [*Folds(folds=3).splits(data), *Fractions().splits(data)]:
        sides = [{group_of[text] for text in part} for part in parts(split)]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 50


def test_texts_that_differ_in_case_or_address_only_stay_on_one_side() -> None:
    texts = tuple((text,) for n in range(100) for text in (f"Fire {n} http://t.co/{n}", f"fire {n} http://t.co/x{n}"))
    data = dataset(Examples(texts, np.arange(200) // 100))
    for split in Folds(folds=4).splits(data):
        sides = [{text.split()[1] for (text,) in part} for part in parts(split)]
        assert sum(map(len, sides)) == 100


def test_the_seed_decides() -> None:
    data = dataset(examples((50, 50)))
    first, again, other = (Fractions(seed=seed).splits(data)[0].test.texts for seed in (0, 0, 1))
    assert first == again != other


def test_given_parts_are_used_as_they_are() -> None:
    train, validation, test = examples((50, 50)), examples((2, 2), "validation"), examples((3, 3), "test")
    (split,) = Fractions().splits(dataset(train, validation, test))
    assert (split.train, split.validation, split.test) == (train, validation, test)
    (split,) = Fractions().splits(dataset(train, None, test))
    assert (len(split.train), len(split.validation), split.test) == (90, 10, test)
    assert all(split.validation is validation for split in Folds().splits(dataset(train, validation)))
    with pytest.raises(UserError, match=r"splits.kind=fractions"):
        Folds().splits(dataset(train, None, test))


@pytest.mark.parametrize(
    ("splits", "counts", "message"),
    [
        (Fractions(), (100, 5), "'b' has 5 .*11.*splits"),
        (Folds(), (100, 4), "'b' has 4 .*5 folds.*splits"),
        (Folds(), (100, 6), "'b' has . .*11.*splits"),
        (Fractions(), (2, 2), "'a' has 2 .*splits"),
    ],
)
def test_a_class_with_too_few_texts_is_named(splits: Fractions | Folds, counts: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        splits.splits(dataset(examples(counts)))


def test_fractions_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"validation \+ test"):
        Fractions(validation=0.5, test=0.5)
