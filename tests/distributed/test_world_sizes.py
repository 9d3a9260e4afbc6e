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
def alone() -> Mapping[tuple[str, str], list[float]]:
    """Return the losses of one process that computes each step's rows at once."""
    return {
        (optimizer, dtype): worker.losses(ALONE, optimizer, "replicated", dtype, worker.BATCH_ROWS)
        for optimizer, dtype in {(optimizer, dtype) for optimizer, _, dtype, _ in worker.CASES}
    }


@pytest.mark.parametrize("case", worker.CASES, ids=lambda case: "-".join(map(str, case)))
def test_any_number_of_processes_trains_the_same_model(
    case: tuple[str, str, str, int],
    found: Mapping[str, list[float]],
    alone: Mapping[tuple[str, str], list[float]],
) -> None:
    optimizer, _, dtype, _ = case
    expected = alone[optimizer, dtype]
    assert len(set(expected)) == worker.STEPS + worker.STEPS // 5 + 1
    assert found["-".join(map(str, case))] == pytest.approx(expected, rel=TOLERANCE[dtype])
