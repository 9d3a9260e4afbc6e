import numpy as np
import pytest

from finetune.data.examples import DataSplit, Examples
from finetune.evaluation.baselines import LONGEST_TEXT, measured, predict_majority, predict_tfidf
from finetune.evaluation.metrics import Metric

FIRST, SECOND = ["storm", "flood", "wildfire", "quake", "rescue"], ["music", "lunch", "holiday", "football", "garden"]


def majority(split: DataSplit, num_classes: int) -> dict[Metric, float | None]:
    return measured(split, predict_majority(split, num_classes))


def tfidf(split: DataSplit, num_classes: int) -> dict[Metric, float | None]:
    return measured(split, predict_tfidf(split, num_classes))


def examples(texts: list[str], labels: list[int]) -> Examples:
    return Examples(tuple((text,) for text in texts), np.array(labels, np.int64))


def sentences(number: int, seed: int) -> Examples:
    """Sentences of either topic, mixed with words that tell nothing."""
    draw = np.random.default_rng(seed)
    labels = [index % 2 for index in range(number)]
    words = [[*draw.choice((FIRST, SECOND)[label], 3), *draw.choice(["the", "a", "today"], 4)] for label in labels]
    return examples([" ".join(draw.permutation(chosen)) for chosen in words], labels)


def test_the_majority_of_what_is_not_tested_is_always_predicted() -> None:
    split = DataSplit(examples(["a"] * 3, [0, 0, 1]), examples(["b"] * 2, [1, 1]), examples(["c"] * 4, [0, 1, 1, 1]))
    found = majority(split, 2)
    assert (found["accuracy"], found["mcc"], found["recall"], found["roc_auc"]) == (0.75, 0.0, 1.0, 0.5)
    assert found["f1"] == pytest.approx(2 * 0.75 / 1.75)


def test_the_majority_of_three_classes_may_miss_one() -> None:
    split = DataSplit(examples(["a"] * 3, [1, 1, 0]), examples(["b"], [1]), examples(["c"] * 2, [0, 1]))
    found = majority(split, 3)
    assert (found["accuracy"], found["roc_auc"]) == (0.5, None)
    assert found["f1"] == found["f1_macro"] == pytest.approx((2 / 3) / 2)


def test_words_that_tell_the_class_are_learned_and_the_result_is_repeatable() -> None:
    split = DataSplit(sentences(60, 0), sentences(20, 1), sentences(40, 2))
    found = tfidf(split, 2)
    assert found["accuracy"] == 1.0
    assert found["roc_auc"] == 1.0
    assert tfidf(split, 2) == found


def test_the_validation_part_is_learned_from_too() -> None:
    silent = examples(["nothing here"] * 4, [0, 1, 0, 1])
    assert tfidf(DataSplit(silent, silent, sentences(40, 2)), 2)["accuracy"] == 0.5
    assert tfidf(DataSplit(silent, sentences(60, 0), sentences(40, 2)), 2)["accuracy"] == 1.0


def test_the_second_text_of_a_pair_is_read() -> None:
    def pairs(part: Examples) -> Examples:
        return Examples(tuple(("the same", *texts) for texts in part.texts), part.labels)

    split = DataSplit(pairs(sentences(60, 0)), pairs(sentences(20, 1)), pairs(sentences(40, 2)))
    assert tfidf(split, 2)["accuracy"] == 1.0


def test_the_order_of_words_is_learned() -> None:
    """Two orders of the same words have the same n-grams of characters within them."""

    def orders(number: int) -> Examples:
        return examples(
            [("storm then flood", "flood then storm")[n % 2] for n in range(number)], [n % 2 for n in range(number)]
        )

    assert tfidf(DataSplit(orders(20), orders(4), orders(8)), 2)["accuracy"] == 1.0


def test_texts_without_spaces_are_learned_by_their_characters() -> None:
    rng = np.random.default_rng(0)

    def unspaced(number: int) -> Examples:
        other = ["".join(chr(code) for code in rng.integers(0x4E00, 0x9000, 6)) for _ in range(number)]
        return examples(
            [f"{text}{('河水', '山火')[n % 2]}" for n, text in enumerate(other)], [n % 2 for n in range(number)]
        )

    assert tfidf(DataSplit(unspaced(40), unspaced(4), unspaced(20)), 2)["accuracy"] == 1.0


def test_of_a_long_text_the_beginning_is_read() -> None:
    def long(part: Examples, before: int) -> Examples:
        return Examples(tuple(("the " * before + texts[0],) for texts in part.texts), part.labels)

    near, far = LONGEST_TEXT // 8, LONGEST_TEXT // 4 + 1
    for before, accuracy in ((near, 1.0), (far, 0.5)):
        train, validation, test = (long(sentences(number, seed), before) for seed, number in enumerate((60, 20, 40)))
        assert tfidf(DataSplit(train, validation, test), 2)["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["one two", "three four", "one two"], [0, 0, 0]),  # a single class
        (["abc", "def", "ghi"], [0, 0, 1]),  # no n-gram is in two texts
        (["", " ", ""], [0, 0, 1]),
    ],
)
def test_where_nothing_can_be_learned_it_is_the_majority(texts: list[str], labels: list[int]) -> None:
    split = DataSplit(
        examples(texts[:2], labels[:2]), examples(texts[2:], labels[2:]), examples(["one", "two"], [0, 1])
    )
    assert tfidf(split, 2) == majority(split, 2)


def test_a_class_that_was_never_seen_is_never_predicted() -> None:
    parts = [sentences(number, seed) for seed, number in enumerate((60, 20, 40))]
    test = Examples(parts[2].texts, np.where(np.arange(40) < 10, 2, parts[2].labels))
    found = tfidf(DataSplit(parts[0], parts[1], test), 3)
    assert found["accuracy"] == 0.75
