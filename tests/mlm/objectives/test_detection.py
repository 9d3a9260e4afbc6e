import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlm.data.batches import IGNORED, Batch
from mlm.data.detection import KEPT, Detection, swap_and_replace
from mlm.data.masking import row_keys
from mlm.distributed.world import World
from mlm.model.attention import SegmentMask
from mlm.model.heads import DetectionModel, Transform
from mlm.model.initialise import initialise
from mlm.objectives.detection import DetectionTask
from tests.mlm.samples import CPU, ROW_LENGTH, TINY, VOCABULARY, joined, sentences, task_of


def detection_task_of(settings: Detection, **options: Any) -> DetectionTask:
    task = replace(task_of(sentences(40), **options), world=replace(CPU, dtype=torch.float64))
    return DetectionTask(**vars(task), detection=settings)


def model_of() -> DetectionModel:
    model = DetectionModel(TINY, VOCABULARY, ROW_LENGTH)
    initialise(model, TINY.encoder, 0)
    return model.double()


def others_of(batch: Batch) -> Batch:
    assert batch.detection is not None
    return batch.detection


def parts(batches: list[Batch]) -> list[Tensor]:
    """Return the rows and labels of both kinds in micro-batches."""
    both = batches, [others_of(batch) for batch in batches]
    return [torch.cat([getattr(one, name) for one in of]) for of in both for name in ("ids_BL", "labels_BM")]


@pytest.mark.parametrize("share", [0.5, 0.34, 0.75])
def test_some_rows_of_a_step_have_changed_tokens_and_the_others_are_masked(share: float) -> None:
    task = detection_task_of(Detection(row_share=share))
    (batch,) = task.micro_batches(2, 0.5)
    rows_B, epochs_B = task.train.order.rows(task.seed, 2, task.batch_rows)
    chosen_B = task.are_for_detection(2 * task.batch_rows, len(rows_B))
    assert 0 < chosen_B.sum() < len(rows_B)
    plain = task_of(sentences(40)).batch(rows_B[~chosen_B], epochs_B[~chosen_B], 0, 0.5)
    assert torch.equal(batch.ids_BL, plain.ids_BL)
    assert torch.equal(batch.labels_BM, plain.labels_BM)
    assert batch.targets == plain.targets
    whole = task.train.assemble(rows_B[chosen_B])
    keys_B = row_keys(task.seed, epochs_B[chosen_B], rows_B[chosen_B])
    ids_BL, classes_BL = map(torch.from_numpy, swap_and_replace(whole, keys_B, task.detection))
    maskable_BL = torch.from_numpy(whole.maskable_BL)
    assert torch.equal(others_of(batch).ids_BL, ids_BL)
    assert torch.equal(others_of(batch).labels_BM, classes_BL.where(maskable_BL, torch.tensor(IGNORED)))
    assert batch.tokens == plain.tokens + (whole.segments_BL > 0).sum()


@pytest.mark.parametrize("share", [0.03, 0.2, 0.5, 0.75])
def test_every_step_has_the_share_of_such_rows_evenly_spread(share: float) -> None:
    task = detection_task_of(Detection(row_share=share), batch_rows=8)
    found = np.array([task.are_for_detection(step * 8, 8) for step in range(2000)])
    assert set(found.sum(axis=1)) <= {math.floor(share * 8), math.ceil(share * 8)}
    assert found.mean() == pytest.approx(share, abs=5 * (0.25 / 2000) ** 0.5 / 8)  # at most a row a step is chance
    assert found.mean(axis=0) == pytest.approx(share, abs=5 * (share * (1 - share) / 2000) ** 0.5)
    assert np.array_equal(found[7], np.concatenate([task.are_for_detection(7 * 8 + i, 1) for i in range(8)]))


def test_each_corpus_of_a_mixture_has_rows_of_both_kinds() -> None:
    mixture = joined([sentences(40), sentences(40, seed=5)], (0.5, 0.5))
    task = DetectionTask(**vars(task_of(mixture)), detection=Detection())
    met = set[tuple[int, bool]]()
    for step in range(12):
        (batch,) = task.micro_batches(step, 0.5)
        for kind, rows in enumerate((batch, others_of(batch))):
            assert rows.corpora_B is not None
            met |= {(corpus, bool(kind)) for corpus in rows.corpora_B.tolist()}
    assert len(met) == 4


def test_before_the_second_task_begins_all_rows_are_masked_and_the_sums_have_the_same_names() -> None:
    task, model = detection_task_of(Detection(begin=0.5)), model_of()
    (before,), (after,) = (task.micro_batches(2, fraction) for fraction in (0.49, 0.5))
    assert before.detection is None
    assert after.detection is not None
    assert len(before.ids_BL) == len(after.ids_BL) + len(after.detection.ids_BL) == task.batch_rows
    sums, later = task.losses(model, before), task.losses(model, after)
    assert list(sums) == list(later)
    assert sums["targets/detection"] == sums["loss/detection"] == 0 < later["targets/detection"]


def test_micro_batches_and_ranks_share_out_the_same_rows() -> None:
    task = detection_task_of(Detection(), batch_rows=12, micro_batch_rows=12)
    whole = parts(list(task.micro_batches(1, 0.5)))
    cut = parts(list(replace(task, micro_batch_rows=4).micro_batches(1, 0.5)))
    assert all(map(torch.equal, cut, whole))
    worlds = [World(CPU.device, torch.float64, rank=rank, size=3) for rank in range(3)]
    shared = [parts(list(replace(task, world=world).micro_batches(1, 0.5))) for world in worlds]
    assert all(map(torch.equal, map(torch.cat, zip(*shared, strict=True)), whole))


def test_the_gradient_is_that_of_both_losses_and_the_loss_that_of_masked_tokens() -> None:
    task, model = detection_task_of(Detection(weight=0.3)), model_of()
    (batch,) = task.micro_batches(0, 0.0)
    others = others_of(batch)
    sums = task.losses(model, batch)
    actual = torch.autograd.grad(sums["loss"], list(model.parameters()))

    def states(rows: Batch) -> Tensor:
        encoded: Tensor = model.encoder(rows.ids_BL, SegmentMask.of(rows.segments_BL, rows.positions_BL, torch.float64))
        return encoded

    hidden_BMD = states(batch).gather(1, batch.predicted_BM[:, :, None].expand(-1, -1, TINY.encoder.width))
    scores_BMV = hidden_BMD @ model.encoder.embeddings.tokens.weight.T + model.output_bias
    masked = F.cross_entropy(scores_BMV.flatten(0, 1), batch.labels_BM.flatten(), ignore_index=IGNORED, reduction="sum")
    first, last = model.detector
    assert isinstance(first, Transform)
    scores_BLC = last(first.norm(first.activation(first.dense(states(others)))))
    told = F.cross_entropy(scores_BLC.flatten(0, 1), others.labels_BM.flatten(), ignore_index=IGNORED, reduction="sum")
    expected = torch.autograd.grad(masked + 0.3 * told, list(model.parameters()))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert sums["loss"].item() == pytest.approx(masked.item())
    assert sums["loss/detection"].item() == pytest.approx(told.item())
    changed_BL, told_BL = others.labels_BM > KEPT, scores_BLC.argmax(dim=2) == others.labels_BM
    assert sums["targets/detection"] == (others.labels_BM != IGNORED).sum()
    assert sums["targets/changed"] == changed_BL.sum() > 0
    assert sums["recall/changed"] == (changed_BL & told_BL).sum()


def test_held_out_rows_are_judged_as_without_moved_tokens() -> None:
    task, model = detection_task_of(Detection()), model_of()
    plain = replace(task_of(sentences(40)), world=task.world)
    assert task.evaluate(model) == plain.evaluate(model)


def test_a_rank_without_rows_adds_nothing() -> None:
    task, model = detection_task_of(Detection()), model_of()
    (batch,) = task.micro_batches(0, 0.0)
    sums = task.losses(model, batch.without_targets())
    gradients = torch.autograd.grad(sums["loss"], list(model.parameters()))
    assert all(not gradient.any() for gradient in gradients)
    assert not any(value.item() for value in sums.values())
