from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from matplotlib.text import Text

from finetune.evaluation.figures import comparison_figure, confusion_figure, learning_curves, numbers_figure
from mlm.tracking.plots import write


def lines(axes: Axes, color: str) -> list[tuple[list[float], list[float]]]:
    """Return the points of the lines of a color."""
    return [
        (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in axes.lines
        if line.get_color() == color
    ]


def overlapping(texts: list[Text]) -> bool:
    """Tell whether any two of the texts touch."""
    boxes = [text.get_window_extent() for text in texts]
    return any(box.overlaps(other) for number, box in enumerate(boxes) for other in boxes[:number])


def test_a_picture_is_written_whole_and_replaces_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "confusion.png"
    path.write_text("the former one")
    write(confusion_figure(np.array([[5, 1], [2, 8]]), ("no", "yes"), "test"), path)
    height, width, _ = imread(path).shape
    assert height > 300
    assert width > 300
    assert list(tmp_path.iterdir()) == [path]


def test_cells_show_counts_and_the_true_class_s_shares() -> None:
    figure = confusion_figure(np.array([[3000, 1000], [0, 0]]), ("no", "yes"), "validation")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["3,000\n75%", "1,000\n25%", "0", "0"]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]  # type: ignore[union-attr]
    assert axes.get_title(loc="left") == "validation"


@pytest.mark.parametrize("number", [2, 6, 20])
def test_names_and_cells_do_not_overlap(number: int) -> None:
    names = [f"a rather long class name {index}" for index in range(number)]
    figure = confusion_figure(np.full((number, number), 12_345), names, "test")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert not overlapping(axes.get_xticklabels())
    assert not overlapping(axes.get_yticklabels())
    assert not overlapping(list(axes.texts)[:number])
    assert not overlapping(list(axes.texts)[::number])


def test_names_that_cannot_be_drawn_are_numbers_and_none_is_read_as_a_formula(tmp_path: Path) -> None:
    figure = confusion_figure(np.eye(3, dtype=np.int64), ("긍정", "$\\frac{", "plain"), "$x_{ 부정")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "$\\frac{", "plain"]
    write(figure, tmp_path / "a.png")  # a warning about missing letters would be an error here
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_picture_of_numbers_has_both_lines_of_its_title() -> None:
    figure = numbers_figure(np.array([1.0, 2.0]), np.array([1.5, 1.5]), "stsb: test,\n1 trial")
    assert figure.axes[0].get_title(loc="left") == "stsb: test,\n1 trial"


def records(accuracies: list[float]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for epoch, accuracy in enumerate(accuracies, start=1):
        found.append({"side": "train", "epoch": epoch - 0.5, "loss": 1 / epoch})
        found.append({"side": "validation", "epoch": epoch, "loss": 1.5 - accuracy, "accuracy": accuracy})
    return found


def test_every_trial_is_a_line_and_its_best_evaluation_a_dot() -> None:
    figure = learning_curves({"fold 0": records([0.5, 0.75, 0.75]), "fold 1": records([0.25, 0.5])}, "accuracy")
    loss, accuracy = figure.axes
    assert lines(loss, "#9db4c8") == [([0.5, 1.5, 2.5], [1, 0.5, 1 / 3]), ([0.5, 1.5], [1, 0.5])]
    assert lines(loss, "#1f5582") == [([1, 2, 3], [1.0, 0.75, 0.75]), ([1, 2], [1.25, 1.0])]
    assert lines(loss, "#b5651d") == [([2], [0.75]), ([2], [1.0])]
    assert lines(accuracy, "#1f5582") == [([1, 2, 3], [0.5, 0.75, 0.75]), ([1, 2], [0.25, 0.5])]
    assert lines(accuracy, "#b5651d") == [([2], [0.75]), ([2], [0.5])]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [  # type: ignore[union-attr]
        "training",
        "validation",
        "best accuracy, kept",
    ]


def test_what_was_measured_before_training_is_not_the_best() -> None:
    before: dict[str, object] = {"side": "validation", "epoch": 0.0, "loss": 0.1, "accuracy": 1.0}
    _, accuracy = learning_curves({"one": [before, *records([0.5, 0.75])]}, "accuracy").axes
    assert lines(accuracy, "#1f5582") == [([0.0, 1, 2], [1.0, 0.5, 0.75])]
    assert lines(accuracy, "#b5651d") == [([2], [0.75])]


def test_the_lowest_loss_is_the_best_and_needs_one_picture_only() -> None:
    figure = learning_curves({"one": records([0.5, 1.0, 0.75])}, "loss")
    assert len(figure.axes) == 1
    assert lines(figure.axes[0], "#b5651d") == [([2], [0.5])]


def test_training_alone_is_drawn_where_nothing_was_evaluated() -> None:
    alone = [record for record in records([0.5, 0.75]) if record["side"] == "train"]
    (loss,) = learning_curves({"one": alone}, "accuracy").axes
    assert lines(loss, "#9db4c8") == [([0.5, 1.5], [1, 0.5])]
    assert len(loss.lines) == 1


def test_curves_of_nothing_are_an_empty_picture(tmp_path: Path) -> None:
    unknown = [{"side": "validation", "epoch": 1, "loss": None, "roc_auc": None}]
    assert [list(axes.lines) for axes in learning_curves({}, "roc_auc").axes] == [[]]
    write(learning_curves({"one": [], "two": unknown}, "roc_auc"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_comparison_of_nothing_is_an_empty_picture(tmp_path: Path) -> None:
    for scores in ([], [0.5]):
        write(comparison_figure([("a", scores), ("b", [])], {}, "roc_auc"), tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_comparison_shows_means_single_trials_and_baselines(tmp_path: Path) -> None:
    figure = comparison_figure(
        [("empty", []), ("runs/$a", [0.75, 1.0]), ("실행", [0.5])], {"TF-IDF": 0.6, "majority class": 0.5}, "accuracy"
    )
    axes = figure.axes[0]
    assert [points[0] for points in lines(axes, "#9db4c8")] == [[0.75, 1.0], [0.5]]
    assert next(values for values, _ in lines(axes, "#1f5582") if len(values) == 1) == [0.875]
    assert [points[0] for points in lines(axes, "#b5651d")] == [[0.6, 0.6], [0.5, 0.5]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["empty", "runs/$a", "run 3"]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "one trial",
        "mean ± standard deviation",
        "TF-IDF 0.600",
        "majority class 0.500",
    }
    write(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
