"""Metrics of a classifier's predictions, computed by scikit-learn."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from finetune.data.class_names import MOST_CLASSES, short

Metric = Literal[
    "accuracy", "f1", "f1_macro", "f1_weighted", "mcc", "precision", "recall", "roc_auc", "pearson", "spearman", "loss"
]  # the names in results.json and of early stopping

METRIC_NAMES: tuple[Metric, ...] = get_args(Metric)
NUMBER_METRICS: tuple[Metric, ...] = ("pearson", "spearman", "loss")
CLASS_METRICS = tuple(name for name in METRIC_NAMES if name not in ("pearson", "spearman"))


def scores(
    labels_N: NDArray[np.int64], probabilities_NC: NDArray[np.floating], only: Metric | None = None
) -> dict[Metric, float | None]:
    """Return all metrics but the loss; the most probable class is the prediction.

    With two classes `f1`, `precision` and `recall` are those of the second one; else they are means over the classes
    that occur in labels or predictions (so `f1` equals `f1_macro`). A division by zero gives 0. `roc_auc` is that of
    the second of two classes, or else the mean of each class against the rest. Labels that lack a class may leave
    nothing to measure, whatever the predictions: `roc_auc` is then None, as are `f1`, `precision` and `recall` of a
    second class that is not there, and `mcc` of a single class. Where `only` another metric is asked for, `roc_auc`,
    which takes long, is not computed. Without examples there is a ValueError.
    """
    from sklearn import metrics

    if not len(labels_N):
        raise ValueError("no examples to score")
    classes = probabilities_NC.shape[1]
    predictions_N = probabilities_NC.argmax(axis=1)

    def average(kind: str, only: list[int] | None = None) -> tuple[float, float, float]:
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            labels_N, predictions_N, labels=only, average=kind, zero_division=0
        )
        return float(precision), float(recall), float(f1)

    precision: float | None
    recall: float | None
    f1: float | None
    macro = average("macro")
    precision, recall, f1 = macro
    if classes == 2:
        precision, recall, f1 = average("macro", only=[1]) if 1 in labels_N else (None, None, None)
    found_classes = len(np.unique(labels_N))
    # One class after the other, because scikit-learn's own mean takes a dense matrix of examples by classes.
    has_all_classes = found_classes == max(classes, 2) and only in (None, "roc_auc")
    ranked = list(enumerate(probabilities_NC.T))[-1 if classes == 2 else 0 :] if has_all_classes else []
    return {
        "accuracy": float(metrics.accuracy_score(labels_N, predictions_N)),
        "f1": f1,
        "f1_macro": macro[2],
        "f1_weighted": average("weighted")[2],
        "mcc": _mcc(labels_N, predictions_N, classes) if found_classes > 1 else None,
        "precision": precision,
        "recall": recall,
        "roc_auc": float(np.mean([metrics.roc_auc_score(labels_N == c, p_N) for c, p_N in ranked])) if ranked else None,
    }


def number_scores(
    numbers_N: NDArray[np.float64], predictions_N: NDArray[np.floating], scale: float
) -> dict[Metric, float | None]:
    """Return Pearson's and Spearman's correlation of the numbers with those predicted, and the mean squared error.

    A correlation is None where the numbers are all the same, and 0 where the predictions alone are: these have failed.
    The error is the `loss`, in units of `scale` squared: with the deviation of the training numbers, their mean has a
    loss of about 1. Without examples there is a ValueError.
    """
    from scipy import stats

    if not len(numbers_N):
        raise ValueError("no examples to score")
    loss = float(np.mean(((predictions_N - numbers_N) / scale) ** 2))
    if np.ptp(numbers_N) == 0 or np.ptp(predictions_N) == 0:
        correlation = None if np.ptp(numbers_N) == 0 else 0.0
        return {"pearson": correlation, "spearman": correlation, "loss": loss}
    return {
        "pearson": float(stats.pearsonr(numbers_N, predictions_N).statistic),
        "spearman": float(stats.spearmanr(numbers_N, predictions_N).statistic),
        "loss": loss,
    }


def deviation_of(numbers_N: NDArray[Any]) -> float:
    """Return the standard deviation of numbers; 1 if all are the same."""
    return float(numbers_N.std()) or 1.0


def _mcc(labels_N: NDArray[np.int64], predictions_N: NDArray[np.int64], classes: int) -> float:
    """Return Matthews' correlation (Gorodkin 2004), 0 for 0/0; scikit-learn takes a dense matrix of all classes."""
    examples, right = len(labels_N), int((labels_N == predictions_N).sum())
    true_C, predicted_C = (
        np.bincount(found, minlength=classes).astype(np.float64) for found in (labels_N, predictions_N)
    )
    spread = (examples**2 - true_C @ true_C) * (examples**2 - predicted_C @ predicted_C)
    return float((right * examples - true_C @ predicted_C) / spread**0.5) if spread else 0.0


def goodness(metric: Metric, value: float) -> float:
    """Return a metric's value with the sign that makes more of it better."""
    return -value if metric == "loss" else value


def most_confused(labels_N: NDArray[np.int64], predictions_N: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return the indices, in order, of the MOST_CLASSES with most mistakes, as the true class or the predicted one."""
    wrong = labels_N != predictions_N
    mistakes_C = np.bincount(np.concatenate([labels_N[wrong], predictions_N[wrong]]), minlength=classes)
    return np.sort(np.argsort(-mistakes_C, kind="stable")[:MOST_CLASSES])


def confusion(
    labels_N: NDArray[np.int64],
    predictions_N: NDArray[np.int64],
    class_names: Sequence[str],
    shown_K: NDArray[np.int64],
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the confusion matrix of the shown classes and its names; a last row and column are all other classes."""
    from sklearn.metrics import confusion_matrix

    names, others = [class_names[index] for index in shown_K], len(class_names) - len(shown_K)
    places_C = np.full(len(class_names), len(names))
    places_C[shown_K] = np.arange(len(names))
    names += [f"{others:,} other classes"] if others else []
    return confusion_matrix(places_C[labels_N], places_C[predictions_N], labels=range(len(names))), names


def per_class_report(
    labels_N: NDArray[np.int64],
    predictions_N: NDArray[np.int64],
    class_names: Sequence[str],
    shown_K: NDArray[np.int64],
) -> str:
    """Return precision, recall, F1 and number of examples of the shown classes, and means over all, as text."""
    from sklearn.metrics import classification_report

    names = [short(name) for name in class_names]
    report: str = classification_report(
        labels_N, predictions_N, labels=range(len(names)), target_names=names, digits=3, zero_division=0
    )
    head, blank, *lines = report.rstrip().splitlines()
    classes, means = lines[: len(names)], lines[len(names) :]
    left_out = [f"({len(names) - len(shown_K):,} other classes)"] if len(shown_K) < len(names) else []
    return "\n".join([head, blank, *(classes[index] for index in shown_K), *left_out, *means])


def confusion_text(matrix_CC: NDArray[np.int64], class_names: Sequence[str]) -> str:
    """Return the confusion matrix as lines of text.

    Columns are numbered, and names come last in a line, so that their width does not break the alignment.
    """
    width = max(4, len(f"{matrix_CC.max():,}") + 2, len(str(len(class_names))) + 2)
    lines = ["true \\ predicted" + "".join(f"{number:>{width}}" for number in range(len(class_names)))]
    for number, (row, name) in enumerate(zip(matrix_CC.tolist(), class_names, strict=True)):
        lines.append(f"{number:>16}" + "".join(f"{count:>{width},}" for count in row) + f"   {number} = {short(name)}")
    return "\n".join(lines)
