"""The same training on one, two and four processes, replicated and sharded, is the same training."""

import json
from typing import Any

import pytest
import torch

from mlm.distributed import World
from tests.distributed import worker
from tests.distributed.launch import finish, torchrun

ALONE = World(torch.device("cpu"), torch.float32)
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("world")
    process = torchrun(request.param, "tests.distributed.worker", "losses.json", folder=folder)
    output = finish(process, seconds=240)
    assert process.returncode == 0, output
    losses: dict[str, list[float]] = json.loads((folder / "losses.json").read_text())
    return losses


@pytest.fixture(scope="module")
def alone() -> dict[Any, list[float]]:
    """Return the losses of one process that computes each step's rows at once."""
    return {
        (optimiser, dtype): worker.losses(ALONE, optimiser, "replicated", dtype, worker.BATCH_ROWS)
        for optimiser in worker.OPTIMISERS
        for dtype in worker.DTYPES
    }


@pytest.mark.parametrize("case", worker.CASES, ids=lambda case: "-".join(map(str, case)))
def test_any_number_of_processes_trains_the_same_model(
    case: tuple[str, str, str, int], found: dict[str, list[float]], alone: dict[Any, list[float]]
) -> None:
    optimiser, parallel, dtype, _ = case
    expected = alone[optimiser, dtype]
    assert len(set(expected)) == worker.STEPS + worker.STEPS // 10 + 1
    # Muon makes its updates orthogonal in bfloat16, and sharded matrices sum their products in another order.
    tolerance = 1e-5 if (optimiser, parallel) == ("muon", "sharded") else 0.0
    assert found["-".join(map(str, case))] == pytest.approx(expected, rel=max(TOLERANCE[dtype], tolerance))
