"""A resumed run goes on with the batches and the dropout of the version that its environment.json tells."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlm.checkpoint.manifest import DETERMINISM
from mlm.data.batches import IGNORED
from mlm.data.masking import Masking
from mlm.model.dropout import Dropout, drop, seed_dropout
from mlm.training.optim import AdamW
from tests.mlm.samples import TINY, joined, model_of, packed, sentences, split_of, task_of
from tests.mlm.training.test_loop import run

DIGESTS = {
    2: {
        "token": "557a060227d22a54",
        "word": "b5faa198842fb763",
        "span": "9d0c7f4d2bfcc180",
        "dropout": "173338d7d135371c",
        "dropout of a training": "7dbcdb60e81e08b9",
    }
}
"""The first 16 digits of the SHA-256 of the numbers, by version of `DETERMINISM`: other numbers are another version."""


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array, "<i8").tobytes())
    return hashed.hexdigest()[:16]


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_order_packing_and_masks_are_those_of_the_version(unit: str) -> None:
    """Of a mixture of two corpora with sentences longer than a row, over more than an epoch of either."""
    splits = [split_of([[9, 40, 5, 1 + n % 30] for n in range(10)], seed) for seed in (1, 2)]
    tokens = digest(split.tokens for split in splits)
    assert tokens == "1bf070ed032ade99", "NumPy draws another text, which says nothing about the version"
    parts, shares = [packed(split, cls_sep=True) for split in splits], (0.25, 0.75)
    masking = Masking.model_validate({"unit": unit, "rate": 0.3, "final_rate": 0.15})
    task = task_of(joined(parts, shares), masking=masking)
    steps = 50
    assert all(len(part) < share * steps * 6 for part, share in zip(parts, shares, strict=True))
    arrays = list[Tensor]()
    for step in range(steps):
        for batch in task.micro_batches(step, step / steps):
            filled_BM = batch.labels_BM != IGNORED
            arrays += batch.ids_BL, batch.segments_BL, batch.positions_BL
            arrays += filled_BM.sum(dim=1), batch.predicted_BM[filled_BM], batch.labels_BM[filled_BM]
    assert digest(array.numpy() for array in arrays) == DIGESTS[DETERMINISM][unit]


def test_dropout_is_that_of_the_version() -> None:
    seed_dropout(7, 3, 0)
    assert digest(drop(torch.ones(1001), p).numpy() > 0 for p in (0.1, 0.5)) == DIGESTS[DETERMINISM]["dropout"]


def test_dropout_of_each_step_and_micro_batch_is_that_of_the_version() -> None:
    model = model_of(TINY.model_copy(update={"encoder": TINY.encoder.model_copy(update={"dropout": 0.1})}))
    dropped = list[NDArray[Any]]()

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if module.training:
            dropped.append((output == 0).numpy())

    next(module for module in model.modules() if isinstance(module, Dropout)).register_forward_hook(note)
    run(task_of(sentences(40), micro_batch_rows=4), model, AdamW().build(model), 3)
    assert len(dropped) == 3 * 2
    assert digest(dropped) == DIGESTS[DETERMINISM]["dropout of a training"]
