"""A resumed run goes on with the batches and the dropout of the version that its checkpoint tells."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from mlm.checkpoint.manifest import DETERMINISM
from mlm.data.masking import Masking
from mlm.model.dropout import drop, seed_dropout
from tests.mlm.samples import joined, packed, split_of, task_of

DIGESTS = {2: {"batches": "9030e1d58f4a81ab", "dropout": "102b2d985b08dc87"}}
"""SHA-256 of the numbers of each version of `DETERMINISM`, its beginning. Whoever changes one raises the version."""


def digest(arrays: Iterable[NDArray[np.generic]]) -> str:
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()[:16]


def test_order_packing_and_masks_are_those_of_the_version() -> None:
    """Of a mixture of two corpora, over more steps than an epoch of either has."""
    chance = np.random.default_rng(0)
    parts = [packed(split_of([chance.integers(1, 30, 4).tolist() for _ in range(10)], seed)) for seed in (1, 2)]
    task = task_of(joined(parts, (0.25, 0.75)), masking=Masking(unit="word", rate=0.3, final_rate=0.15))
    assert 2 * sum(map(len, parts)) < 30 * 6
    batches = [batch for step in range(30) for batch in task.micro_batches(step, step / 30)]
    arrays = [
        array.numpy()
        for batch in batches
        for array in (batch.ids_BL, batch.segments_BL, batch.positions_BL, batch.labels_BM)
    ]
    assert digest(arrays) == DIGESTS[DETERMINISM]["batches"]


def test_dropout_is_that_of_the_version() -> None:
    seed_dropout(7, 3, 0)
    assert digest(drop(torch.ones(1001), p).numpy() > 0 for p in (0.1, 0.5)) == DIGESTS[DETERMINISM]["dropout"]
