"""Fine-tuning on several processes is fine-tuning on one: gradients, evaluation, files."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import finish, torchrun
from tests.finetune import samples
from tests.processes import call

SETTINGS = (
    "encoder.run=run",
    "data.kind=labelled",
    "data.train=train.csv",
    "data.label=target",
    "head.dropout=0.5",
    "encoder.dropout=0.1",
    "train.batch_examples=9",  # neither the batches nor the parts to judge divide by the processes
    "train.micro_batch_examples=5",  # by which one process and two cut 9 and 6 alike, and drop the same elements
    "train.epochs=2",
    "train.precision=float32",
    "optim.lr=3e-3",
)


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_more_processes_change_nothing(tmp_path: Path) -> None:
    samples.make_run(tmp_path / "made").rename(tmp_path / "run")
    samples.write_csv(tmp_path / "train.csv", 75)
    done = call(tmp_path, "finetune.cnn_head", *SETTINGS, "name=alone")
    assert done.returncode == 0, done.stderr
    job = torchrun(2, "finetune.cnn_head", *SETTINGS, "name=several", folder=tmp_path)
    output = finish(job)
    assert job.returncode == 0, output
    alone, pair = (next(tmp_path.glob(f"runs/*-{name}")) for name in ("alone", "several"))
    expected, found = records(alone), records(pair)
    assert len(found) == len(expected) > 10
    for one, other in zip(expected, found, strict=True):
        assert {name: other[name] for name in ("side", "step")} == {name: one[name] for name in ("side", "step")}
        assert [other[name] for name in ("loss", "accuracy")] == pytest.approx(
            [one[name] for name in ("loss", "accuracy")], rel=1e-4
        )
    first, second = (json.loads((run / "results.json").read_text()) for run in (alone, pair))
    for part in ("validation", "test"):
        for metric, score in first[part].items():
            assert second[part][metric]["mean"] == pytest.approx(score["mean"], rel=1e-4), metric
    assert second["data"] == first["data"]
