"""Fine-tuning on several processes is fine-tuning on one: gradients, evaluation, files."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import finish, torchrun
from tests.finetune import samples


def fine_tuned(home: Path, processes: int, *words: str) -> Path:
    job = torchrun(
        processes,
        "finetune.cnn_head",
        "encoder.run=run",
        "data.kind=labelled",
        "data.train=train.csv",
        "data.label=target",
        f"name=on{processes}",
        "head.dropout=0",
        "train.batch_examples=7",  # neither the batches nor the test part divide by the processes
        "train.epochs=2",
        "train.precision=float32",
        "optim.lr=3e-3",
        *words,
        folder=home,
    )
    output = finish(job)
    assert job.returncode == 0, output
    (path,) = home.glob(f"runs/*-on{processes}")
    return path


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_more_processes_change_nothing(tmp_path: Path) -> None:
    samples.make_run(tmp_path / "made").rename(tmp_path / "run")
    samples.write_csv(tmp_path / "train.csv", 75)
    alone = fine_tuned(tmp_path, 1)
    three = fine_tuned(tmp_path, 3, "train.micro_batch_examples=1")
    expected, found = records(alone), records(three)
    assert len(found) == len(expected) > 10
    for one, other in zip(expected, found, strict=True):
        assert {name: other[name] for name in ("side", "step")} == {name: one[name] for name in ("side", "step")}
        assert [other[name] for name in ("loss", "accuracy")] == pytest.approx(
            [one[name] for name in ("loss", "accuracy")], rel=1e-4
        )
    first, second = (json.loads((run / "results.json").read_text()) for run in (alone, three))
    for part in ("validation", "test"):
        for metric, score in first[part].items():
            assert second[part][metric]["mean"] == pytest.approx(score["mean"], rel=1e-4), metric
    assert second["data"] == first["data"]
