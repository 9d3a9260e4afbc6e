"""The report of a run with many classes: bounded, and written before what is drawn."""

from pathlib import Path

import numpy as np
import pytest

from finetune.data.examples import Examples
from finetune.evaluation import report
from finetune.evaluation.results import Parameters, TrialResult
from tests.finetune.run_results import results


def finished(classes: int) -> TrialResult:
    """Return a trial whose every second prediction is wrong."""
    labels = np.repeat(np.arange(classes), 2)
    predictions = np.where(np.arange(len(labels)) % 2, labels, (labels + 1) % classes)
    texts = tuple((f"text {number}",) for number in range(len(labels)))
    return TrialResult(
        scores=results([0.5]).trials[0],
        test=Examples(texts, labels),
        probabilities_NC=np.eye(classes)[predictions],
        parameters=Parameters(all=10, trained=10),
        truncated=0,
        skipped=0,
        goodness=0.5,
    )


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(tmp_path: Path) -> None:
    classes = 2_000
    found = results([0.5], classes=[f"class {number}" for number in range(classes)])
    found.write(tmp_path)
    (tmp_path / report.CONFUSION).mkdir()
    with pytest.raises(OSError, match=report.CONFUSION):
        report.write(tmp_path, found, [finished(classes)])
    text = (tmp_path / report.REPORT).read_text()
    assert "the 40 most confused of 2,000 classes" in text
    assert len(text) < 30_000
    assert len((tmp_path / report.MISTAKES).read_text().splitlines()) == classes + 1
