"""The same training on one and on three processes, replicated and sharded, is the same training."""

import json
from collections.abc import Mapping

import pytest
import torch

from mlm.distributed.world import World
from tests.distributed import worker
from tests.distributed.launch import finish, torchrun

ALONE = World(torch.device("cpu"), torch.float32)
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


Alone = tuple[str, str, int, float]
"""A case on one process: optimizer, type of all numbers, rows of a micro-batch, and dropout."""


def on_one(case: tuple[str, str, str, int, float]) -> Alone:
    """Return the case on one process: it computes a step's rows at once, but with dropout it cuts them alike."""
    optimizer, _, dtype, rows, dropout = case
    return optimizer, dtype, rows if dropout else worker.BATCH_ROWS, dropout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[float]]:
    """Return the losses of each case on three processes."""
    folder = tmp_path_factory.mktemp("world")
    job = torchrun(3, "tests.distributed.worker", "losses.json", folder=folder)
    output = finish(job)
    assert job.returncode == 0, output
    losses: Mapping[str, list[float]] = json.loads((folder / "losses.json").read_text())
    return losses


@pytest.fixture(scope="module")
def alone() -> Mapping[Alone, list[float]]:
    """Return the losses of one process."""
    return {case: worker.losses(ALONE, case[0], "replicated", *case[1:]) for case in set(map(on_one, worker.CASES))}


@pytest.mark.parametrize("case", worker.CASES, ids=lambda case: "-".join(map(str, case)))
def test_any_number_of_processes_trains_the_same_model(
    case: tuple[str, str, str, int, float],
    found: Mapping[str, list[float]],
    alone: Mapping[Alone, list[float]],
) -> None:
    expected = alone[on_one(case)]
    assert len(set(expected)) == len(worker.LOSSES) * (worker.STEPS + worker.STEPS // 5 + 1)
    assert found["-".join(map(str, case))] == pytest.approx(expected, rel=TOLERANCE[case[2]])
