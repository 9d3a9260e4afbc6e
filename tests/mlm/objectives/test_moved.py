from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlm.data.batches import IGNORED, Batch
from mlm.data.masking import row_keys
from mlm.data.moving import KEPT, MovedTokens, move
from mlm.distributed.world import World
from mlm.model.attention import SegmentMask
from mlm.model.heads import MovedTokensModel, Transform
from mlm.model.initialise import initialise
from mlm.objectives.moved import MovedTokensTask
from tests.mlm.samples import CPU, ROW_LENGTH, TINY, VOCABULARY, sentences, task_of


def moved_task_of(settings: MovedTokens, **options: Any) -> MovedTokensTask:
    task = replace(task_of(sentences(40), **options), world=replace(CPU, dtype=torch.float64))
    return MovedTokensTask(**vars(task), settings=settings)


def model_of() -> MovedTokensModel:
    model = MovedTokensModel(TINY, VOCABULARY, ROW_LENGTH)
    initialise(model, TINY.encoder, 0)
    return model.double()


def moved_rows(batch: Batch) -> Batch:
    assert batch.moved is not None
    return batch.moved


def parts(batches: list[Batch]) -> list[Tensor]:
    """Return the rows and labels of both kinds in micro-batches."""
    both = batches, [moved_rows(batch) for batch in batches]
    return [torch.cat([getattr(one, name) for one in of]) for of in both for name in ("ids_BL", "labels_BM")]


@pytest.mark.parametrize(
    ("share", "kinds"), [(0.5, [0, 1] * 3), (0.34, [0, 0, 1, 0, 0, 1]), (0.75, [0, 1, 1, 1, 0, 1])]
)
def test_a_share_of_the_rows_of_a_step_is_moved_and_the_others_are_masked(share: float, kinds: list[int]) -> None:
    task = moved_task_of(MovedTokens(row_share=share))
    (batch,) = task.micro_batches(2, 0.5)
    rows_B, epochs_B = task.train.order.rows(task.seed, 2, task.batch_rows)
    is_moved_B = torch.tensor(kinds).bool().numpy()
    plain = replace(task_of(sentences(40)).batch(rows_B[~is_moved_B], epochs_B[~is_moved_B], 0, 0.5))
    assert torch.equal(batch.ids_BL, plain.ids_BL)
    assert torch.equal(batch.labels_BM, plain.labels_BM)
    assert batch.targets == plain.targets
    whole = task.train.assemble(rows_B[is_moved_B])
    keys_B = row_keys(task.seed, epochs_B[is_moved_B], rows_B[is_moved_B])
    ids_BL, classes_BL = map(torch.from_numpy, move(whole, keys_B, task.settings))
    maskable_BL = torch.from_numpy(whole.maskable_BL)
    assert torch.equal(moved_rows(batch).ids_BL, ids_BL)
    assert torch.equal(moved_rows(batch).labels_BM, classes_BL.where(maskable_BL, torch.tensor(IGNORED)))
    assert batch.tokens == plain.tokens + (whole.segments_BL > 0).sum()


def test_before_the_second_task_begins_all_rows_are_masked_and_the_sums_have_the_same_names() -> None:
    task, model = moved_task_of(MovedTokens(begin=0.5)), model_of()
    (before,), (after,) = (task.micro_batches(2, fraction) for fraction in (0.49, 0.5))
    assert before.moved is None
    assert after.moved is not None
    assert len(before.ids_BL) == len(after.ids_BL) + len(after.moved.ids_BL) == task.batch_rows
    sums, later = task.losses(model, before), task.losses(model, after)
    assert list(sums) == list(later)
    assert sums["targets/moved"] == sums["loss/moved"] == 0 < later["targets/moved"]


def test_micro_batches_and_ranks_share_out_the_same_rows() -> None:
    task = moved_task_of(MovedTokens(), batch_rows=12, micro_batch_rows=12)
    whole = parts(list(task.micro_batches(1, 0.5)))
    cut = parts(list(replace(task, micro_batch_rows=4).micro_batches(1, 0.5)))
    assert all(map(torch.equal, cut, whole))
    worlds = [World(CPU.device, torch.float64, rank=rank, size=3) for rank in range(3)]
    shared = [parts(list(replace(task, world=world).micro_batches(1, 0.5))) for world in worlds]
    assert all(map(torch.equal, map(torch.cat, zip(*shared, strict=True)), whole))


def test_the_gradient_is_that_of_both_losses_and_the_loss_that_of_masked_tokens() -> None:
    task, model = moved_task_of(MovedTokens(weight=0.3)), model_of()
    (batch,) = task.micro_batches(0, 0.0)
    moved = moved_rows(batch)
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
    scores_BLC = last(first.norm(first.activation(first.dense(states(moved)))))
    told = F.cross_entropy(scores_BLC.flatten(0, 1), moved.labels_BM.flatten(), ignore_index=IGNORED, reduction="sum")
    expected = torch.autograd.grad(masked + 0.3 * told, list(model.parameters()))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert sums["loss"].item() == pytest.approx(masked.item())
    assert sums["loss/moved"].item() == pytest.approx(told.item())
    changed_BL, told_BL = moved.labels_BM > KEPT, scores_BLC.argmax(dim=2) == moved.labels_BM
    assert sums["targets/moved"] == (moved.labels_BM != IGNORED).sum()
    assert sums["targets/changed"] == changed_BL.sum() > 0
    assert sums["recall/changed"] == (changed_BL & told_BL).sum()


def test_held_out_rows_are_judged_as_without_moved_tokens() -> None:
    task, model = moved_task_of(MovedTokens()), model_of()
    plain = replace(task_of(sentences(40)), world=task.world)
    assert task.evaluate(model) == plain.evaluate(model)


def test_a_rank_without_rows_adds_nothing() -> None:
    task, model = moved_task_of(MovedTokens()), model_of()
    (batch,) = task.micro_batches(0, 0.0)
    sums = task.losses(model, batch.without_targets())
    gradients = torch.autograd.grad(sums["loss"], list(model.parameters()))
    assert all(not gradient.any() for gradient in gradients)
    assert not any(value.item() for value in sums.values())
