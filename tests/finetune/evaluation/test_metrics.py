import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from finetune.data.class_names import MOST_CLASSES
from finetune.evaluation.metrics import (
    CLASS_METRICS,
    METRIC_NAMES,
    NUMBER_METRICS,
    confusion,
    confusion_text,
    most_confused,
    per_class_report,
    scores,
)
from finetune.evaluation.results import MeanStd, Scores, over_trials
from tests.finetune.run_results import every

# Ten examples of two classes, by the probability of the second. Predicted positive at 0.5 and above: 5, of which 3 are.
LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
SECOND = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.45, 0.8, 0.9, 0.95])
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, TRUE_NEGATIVE = 3, 2, 1, 4


def one_hot(predictions: list[int], classes: int) -> np.ndarray:
    return np.eye(classes)[predictions]


def test_two_classes_score_as_counted_by_hand() -> None:
    found = scores(LABELS, np.stack([1 - SECOND, SECOND], axis=1))
    precision, recall = 3 / 5, 3 / 4
    f1 = 2 * precision * recall / (precision + recall)  # 2/3
    other_precision, other_recall = 4 / 5, 4 / 6
    other_f1 = 2 * other_precision * other_recall / (other_precision + other_recall)  # 8/11
    mcc = (3 * 4 - 2 * 1) / ((3 + 2) * (3 + 1) * (4 + 2) * (4 + 1)) ** 0.5  # 10 / sqrt(600)
    # Of the 4 x 6 pairs of a positive and a negative, the one at 0.45 loses to 0.6 and 0.7; the others win all.
    expected = {
        "accuracy": 7 / 10,
        "f1": f1,
        "f1_macro": (f1 + other_f1) / 2,
        "f1_weighted": (4 * f1 + 6 * other_f1) / 10,
        "mcc": mcc,
        "precision": precision,
        "recall": recall,
        "roc_auc": 22 / 24,
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert [type(value) for value in found.values()] == [float] * 8
    assert {*found, "loss"} == set(CLASS_METRICS)
    assert set(CLASS_METRICS) | set(NUMBER_METRICS) == set(METRIC_NAMES) == set(Scores.model_fields)


def test_three_classes_score_as_counted_by_hand() -> None:
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), [0, 0, 1, 1, 2, 2]
    found = scores(labels, one_hot(predictions, 3))
    # Class 0: precision 2/2, recall 2/3, F1 4/5; class 1: 1/2, 1/2, 1/2; class 2: 1/2, 1/1, 2/3.
    macro = (4 / 5 + 1 / 2 + 2 / 3) / 3
    assert found["f1"] == found["f1_macro"] == pytest.approx(macro)
    assert found["f1_weighted"] == pytest.approx((3 * 4 / 5 + 2 * 1 / 2 + 1 * 2 / 3) / 6)
    assert found["precision"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["accuracy"] == pytest.approx(4 / 6)
    # Gorodkin 2004: right 4 of 6; true counts 3, 2, 1, predicted 2, 2, 2.
    covariance = 4 * 6 - (3 * 2 + 2 * 2 + 1 * 2)  # 12
    assert found["mcc"] == pytest.approx(covariance / ((36 - 14) * (36 - 12)) ** 0.5)
    # One against the rest, ties one half. 0: of 3 x 3 pairs, 2 x 3 won and 3 tied. 1: 2 x 4 pairs: the found one wins
    # 3 and ties 1, the other ties 3 and loses 1. 2: 1 x 5 pairs: 4 won, 1 tied.
    assert found["roc_auc"] == pytest.approx((7.5 / 9 + 5 / 8 + 4.5 / 5) / 3)


@pytest.mark.parametrize("predictions", [[0, 0, 0], [1, 0, 0], [1, 1, 1]])
def test_metrics_of_a_class_that_is_not_there_are_none_whatever_is_predicted(predictions: list[int]) -> None:
    all_first = scores(np.zeros(3, np.int64), one_hot(predictions, 2))
    right = predictions.count(0)
    f1 = 2 * right / (right + 3)
    assert all_first == pytest.approx({
        "accuracy": right / 3, "f1": None, "f1_macro": f1 / len({0, *predictions}), "f1_weighted": f1, "mcc": None,
        "precision": None, "recall": None, "roc_auc": None,
    })  # fmt: skip
    all_second = scores(np.ones(3, np.int64), one_hot(predictions, 2))
    assert [all_second[name] for name in ("mcc", "roc_auc")] == [None, None]
    assert all_second["recall"] == pytest.approx(predictions.count(1) / 3)


def test_metrics_of_several_classes_are_none_only_where_no_means_is_left() -> None:
    two_of_three = scores(np.array([0, 1]), one_hot([0, 1], 3))
    assert two_of_three["roc_auc"] is None
    assert (two_of_three["mcc"], two_of_three["f1"]) == (1.0, 1.0)
    one_of_three = scores(np.array([2, 2]), one_hot([2, 0], 3))
    assert (one_of_three["mcc"], one_of_three["roc_auc"]) == (None, None)
    assert one_of_three["recall"] == 0.25  # of the two classes that occur


def test_a_class_that_is_never_predicted_is_measured() -> None:
    never_second = scores(np.array([0, 1]), one_hot([0, 0], 2))
    assert (never_second["f1"], never_second["mcc"], never_second["roc_auc"]) == (0.0, 0.0, 0.5)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        scores(np.zeros(0, np.int64), np.zeros((0, 2)))


def test_a_summary_is_mean_and_sample_standard_deviation_of_what_is_known() -> None:
    found = over_trials([every(0.7, roc_auc=None), every(0.9, roc_auc=0.8)])
    assert found.accuracy is not None
    assert found.accuracy.model_dump() == pytest.approx({"mean": 0.8, "std": 0.02**0.5})  # (0.1^2 + 0.1^2) / (2 - 1)
    assert found.roc_auc == MeanStd(mean=0.8, std=None)
    alone = over_trials([every(0.7, roc_auc=None)])
    assert (alone.accuracy, alone.roc_auc) == (MeanStd(mean=0.7, std=None), None)
    assert str(alone.accuracy) == "0.700"


def test_the_confusion_matrix_as_text_is_aligned_whatever_the_names() -> None:
    names = ["no disaster", "긍정", "a\nvery\x1b[2J long name that goes on and on"]
    lines = confusion_text(np.array([[1200, 1, 0], [2, 30000, 4], [0, 0, 7]]), names).splitlines()
    assert lines == [
        "true \\ predicted       0       1       2",
        "               0   1,200       1       0   0 = no disaster",
        "               1       2  30,000       4   1 = 긍정",
        "               2       0       0       7   2 = a very [2J long name...",
    ]
    twenty = confusion_text(np.eye(20, dtype=np.int64), [f"class {number}" for number in range(20)]).splitlines()
    assert len(twenty) == 21
    assert max(map(len, twenty)) <= 120


def test_the_report_names_every_class_with_its_numbers() -> None:
    labels_N, predictions_N, names = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), ["cold", "warm", "hot"]
    report = per_class_report(labels_N, predictions_N, names, np.arange(3))
    lines = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line.strip()}
    assert lines["cold"] == ["1.000", "0.500", "0.667", "2"]
    assert lines["warm"] == ["0.667", "1.000", "0.800", "2"]
    assert lines["hot"] == ["0.000", "0.000", "0.000", "0"]


def test_of_many_classes_those_that_are_confused_most_are_shown() -> None:
    classes, rng = 1000, np.random.default_rng(0)
    labels_N = np.tile(np.arange(classes), 3)
    predictions_N = labels_N.copy()
    confused = rng.choice(classes, MOST_CLASSES, replace=False)
    for one, other in zip(confused[::2], confused[1::2], strict=True):
        predictions_N[one] = other
    shown_K = most_confused(labels_N, predictions_N, classes)
    assert shown_K.tolist() == sorted(confused.tolist())
    names = [f"class {number}" for number in range(classes)]
    matrix_KK, shown = confusion(labels_N, predictions_N, names, shown_K)
    assert matrix_KK.shape == (MOST_CLASSES + 1, MOST_CLASSES + 1)
    assert matrix_KK.sum() == len(labels_N)
    assert matrix_KK[-1, -1] == 3 * (classes - MOST_CLASSES)
    place = {name: number for number, name in enumerate(shown)}
    assert matrix_KK[place[names[confused[0]]], place[names[confused[1]]]] == 1
    report = per_class_report(labels_N, predictions_N, names, shown_K).splitlines()
    assert len(report) < MOST_CLASSES + 10
    assert [line.split()[:2] for line in report if " class" in line[:20] and "other" not in line] == [
        name.split() for name in shown[:-1]
    ]
    assert report[-1].split()[:2] == ["weighted", "avg"]
    assert report[-1].split()[-1] == f"{len(labels_N)}"


@pytest.mark.parametrize("classes", [3, 50])
def test_scores_of_many_classes_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels_N = np.tile(np.arange(classes), 4)
    probabilities_NC = rng.dirichlet(np.ones(classes), len(labels_N))
    found, predictions_N = scores(labels_N, probabilities_NC), probabilities_NC.argmax(axis=1)
    assert found["mcc"] == pytest.approx(matthews_corrcoef(labels_N, predictions_N), abs=1e-12)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(labels_N, probabilities_NC, multi_class="ovr"), abs=1e-12)


def test_memory_of_the_scores_is_linear_in_the_number_of_classes() -> None:
    classes = 10_000  # a matrix of which takes 800 MB
    probabilities_NC = np.random.default_rng(0).random((50, classes))
    labels_N = np.arange(50) * 199
    tracemalloc.start()
    scores(labels_N, probabilities_NC)
    shown_K = most_confused(labels_N, probabilities_NC.argmax(axis=1), classes)
    confusion(labels_N, probabilities_NC.argmax(axis=1), [f"{number}" for number in range(classes)], shown_K)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
