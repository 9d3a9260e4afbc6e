"""The same training on one, two and four processes, replicated and sharded, is the same training."""

import itertools
import json
from typing import Any

import pytest
import torch

from mlm.distributed.world import World
from tests.distributed import worker
from tests.distributed.launch import finish, torchrun

PROCESSES = (2, 4)
ALONE = World(torch.device("cpu"), torch.float32)
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[float]]]:
    """Return the losses of each case, by the number of processes."""
    losses = {}
    for processes in PROCESSES:
        folder = tmp_path_factory.mktemp("world")
        job = torchrun(processes, "tests.distributed.worker", "losses.json", folder=folder)
        output = finish(job)
        assert job.returncode == 0, output
        losses[processes] = json.loads((folder / "losses.json").read_text())
    return losses


@pytest.fixture(scope="module")
def alone() -> dict[Any, list[float]]:
    """Return the losses of one process that computes each step's rows at once."""
    return {
        (optimizer, dtype): worker.losses(ALONE, optimizer, "replicated", dtype, worker.BATCH_ROWS)
        for optimizer in worker.OPTIMIZERS
        for dtype in worker.DTYPES
    }


@pytest.mark.parametrize(
    ("processes", "case"),
    list(itertools.product(PROCESSES, worker.CASES)),
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_any_number_of_processes_trains_the_same_model(
    processes: int,
    case: tuple[str, str, str, int],
    found: dict[int, dict[str, list[float]]],
    alone: dict[Any, list[float]],
) -> None:
    optimizer, _, dtype, _ = case
    expected = alone[optimizer, dtype]
    assert len(set(expected)) == worker.STEPS + worker.STEPS // 10 + 1
    assert found[processes]["-".join(map(str, case))] == pytest.approx(expected, rel=TOLERANCE[dtype])
