import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlm.build import compile_blocks
from mlm.data.batches import IGNORED, Batch
from mlm.data.masking import Masking
from mlm.distributed.world import World
from mlm.model.attention import SegmentMask
from mlm.model.encoder import EncoderConfig
from mlm.model.heads import ModelConfig
from mlm.objectives.masked import CHUNK, chunked_cross_entropy, compute_logits, eager_cross_entropy, heldout_batches
from tests.mlm.samples import CPU, ROW_LENGTH, VOCABULARY, joined, model_of, sentences, task_of


def ids_of(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.ids_BL for batch in batches])


def labels_of(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.labels_BM for batch in batches])


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_a_step_has_the_same_rows_and_masks_for_every_micro_batch_size(unit: str) -> None:
    rows, masking = sentences(40), Masking.model_validate({"unit": unit})
    whole = list(task_of(rows, masking=masking, micro_batch_rows=6).micro_batches(2, 0.5))
    assert len(whole) == 1
    for micro_batch_rows in (1, 2, 3):
        cut = list(task_of(rows, masking=masking, micro_batch_rows=micro_batch_rows).micro_batches(2, 0.5))
        assert len(cut[0].ids_BL) == micro_batch_rows
        assert torch.equal(ids_of(cut), ids_of(whole))
        assert torch.equal(labels_of(cut), labels_of(whole))
        assert sum(batch.targets for batch in cut) == whole[0].targets


def test_ranks_share_out_the_rows_of_a_step() -> None:
    alone = task_of(sentences(40))
    whole = alone.micro_batches(3, 0.5)[0]
    for rank in range(3):
        world = World(CPU.device, CPU.dtype, rank=rank, size=3)
        (part,) = replace(alone, world=world).micro_batches(3, 0.5)
        mine = slice(2 * rank, 2 * rank + 2)
        assert torch.equal(part.ids_BL, whole.ids_BL[mine])
        assert torch.equal(part.labels_BM, whole.labels_BM[mine])


def test_a_rank_without_rows_of_its_own_computes_a_single_one_and_learns_nothing_from_it() -> None:
    whole = task_of(sentences(40), batch_rows=9, micro_batch_rows=9)  # as with train.micro_batch_rows unset
    shapes = []
    for rank in range(8):
        (batch,) = replace(whole, world=World(CPU.device, CPU.dtype, rank=rank, size=8)).micro_batches(0, 0.5)
        shapes.append((len(batch.ids_BL), batch.targets > 0, bool((batch.labels_BM != IGNORED).any())))
    assert shapes == [(2, True, True)] * 4 + [(1, True, True)] + [(1, False, False)] * 3


def test_compiled_layers_get_the_same_slots_at_every_rate() -> None:
    task = replace(task_of(sentences(40), masking=Masking(rate=0.1, final_rate=0.5)), compiled=True)
    batches = [task.micro_batches(0, progress)[0] for progress in (0.0, 0.5, 1.0)]
    assert len({batch.labels_BM.shape for batch in batches}) == 1
    assert batches[0].targets < batches[1].targets < batches[2].targets


@pytest.mark.parametrize("masking", [Masking(rate=0.1, final_rate=0.5), Masking(rate=0.5, final_rate=0.1)])
def test_other_layers_get_slots_for_the_rate_in_force_and_the_same_predictions(masking: Masking) -> None:
    task = task_of(sentences(40), masking=masking)
    for fraction in (0.0, 0.5, 1.0):
        (batch,), (wide,) = (each.micro_batches(0, fraction) for each in (task, replace(task, compiled=True)))
        slots = math.floor(masking.rate_at(fraction) * ROW_LENGTH + 0.5)
        assert batch.labels_BM.shape == batch.predicted_BM.shape == (len(batch.ids_BL), slots)
        assert batch.targets == wide.targets == (batch.labels_BM != IGNORED).sum()
        assert torch.equal(batch.labels_BM, wide.labels_BM[:, :slots])
        assert torch.equal(batch.predicted_BM, wide.predicted_BM[:, :slots])


def test_the_loss_is_the_chunked_cross_entropy_of_the_targets() -> None:
    task, model = task_of(sentences(40)), model_of()
    (batch,) = task.micro_batches(0, 0.0)
    losses = task.losses(model, batch)
    segment_mask = SegmentMask.of(batch.segments_BL, batch.positions_BL, torch.float32)
    logits_MV = model(batch.ids_BL, segment_mask, batch.predicted_BM).double()
    nats, correct = 0.0, 0
    for scores_V, label in zip(logits_MV, batch.labels_BM.flatten().tolist(), strict=True):
        if label != IGNORED:
            nats -= scores_V.softmax(dim=0)[label].log().item()
            correct += int(scores_V.argmax() == label)
    assert batch.targets < batch.labels_BM.numel()
    assert losses["loss"].item() == pytest.approx(nats, rel=1e-6)
    assert losses["correct"].item() == correct


@pytest.mark.parametrize("count", [0, 1, CHUNK, 2 * CHUNK + 7])
def test_the_loss_in_chunks_is_the_same_sum(count: int) -> None:
    torch.manual_seed(0)
    logits_MV, labels_M = torch.randn(count, 9).bfloat16().requires_grad_(), torch.randint(9, (count,))
    labels_M[::3] = IGNORED
    loss, correct, _ = chunked_cross_entropy(logits_MV, labels_M)
    kept_MV, kept_M = logits_MV[labels_M != IGNORED].double(), labels_M[labels_M != IGNORED]
    expected = -kept_MV.log_softmax(dim=-1).gather(1, kept_M[:, None]).sum()
    assert loss.dtype == torch.float32
    assert correct == (kept_MV.argmax(dim=-1) == kept_M).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (actual_MV,), (expected_MV,) = (torch.autograd.grad(total, logits_MV) for total in (loss, expected))
    torch.testing.assert_close(actual_MV, expected_MV, rtol=2.0**-8, atol=0)  # of bfloat16, rounded once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_keeps_its_precision_where_the_label_is_all_but_impossible(dtype: torch.dtype) -> None:
    logits_MV = torch.tensor([[0.0, -2000.0, 3.0], [500.0, 500.0, -500.0]], dtype=dtype, requires_grad=True)
    loss, correct, _ = chunked_cross_entropy(logits_MV, torch.tensor([1, 0]))
    expected = 2003 + math.log1p(math.exp(-3)) + math.log(2)
    assert loss.item() == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 1e-6)
    (gradient_MV,) = torch.autograd.grad(loss, logits_MV)
    first = 1 / (1 + math.exp(3))
    expected_MV = torch.tensor([[first, -1, 1 - first], [-0.5, 0.5, 0]], dtype=dtype)
    torch.testing.assert_close(gradient_MV, expected_MV, rtol=0, atol=1e-6)
    assert correct.item() == 1  # of equal scores the first


def test_unfilled_slots_weigh_nothing() -> None:
    task, model = task_of(sentences(40)), model_of()
    (batch,) = task.micro_batches(0, 0.0)
    rows = [batch.labels_BM[row] != IGNORED for row in range(len(batch.ids_BL))]
    without = [
        replace(
            batch,
            ids_BL=batch.ids_BL[row : row + 1],
            segments_BL=batch.segments_BL[row : row + 1],
            positions_BL=batch.positions_BL[row : row + 1],
            predicted_BM=batch.predicted_BM[row][filled_M][None],
            labels_BM=batch.labels_BM[row][filled_M][None],
        )
        for row, filled_M in enumerate(rows)
    ]
    assert not all(filled_M.all() for filled_M in rows)
    slots, nones = task.losses(model, batch), [task.losses(model, alone) for alone in without]
    total = torch.stack([none["loss"] for none in nones]).sum()
    assert slots["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    assert slots["correct"] == sum(none["correct"] for none in nones)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (slots["loss"], total)]
    for with_slots, without_slots in zip(*gradients, strict=True):
        torch.testing.assert_close(with_slots, without_slots, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the tracer's
@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # so little drops nothing, and takes the other kernel
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("dtype", "share"),
    # A rounding to bfloat16 is a share of 2^-9, and a number passes some ten of them on its way through two layers.
    [(torch.float32, 1e-5), (torch.bfloat16, 10 * 2.0**-9)],
)
def test_loss_and_gradients_on_a_gpu_are_those_of_the_cpu(
    dropout: float, compiled: bool, dtype: torch.dtype, share: float
) -> None:
    torch.compiler.reset()
    encoder = EncoderConfig(width=32, heads=2, feedforward_width=48, layers=3)
    task, model = task_of(sentences(40)), model_of(ModelConfig(encoder=encoder))
    other = model_of(ModelConfig(encoder=encoder.model_copy(update={"dropout": dropout})))
    (batch,) = task.micro_batches(0, 0.0)
    world = World(torch.device("cuda", 0), dtype)
    other.to(world.device)
    if compiled:
        compile_blocks(other)
    expected = task.losses(model, batch)
    actual = replace(task, world=world, compiled=compiled).losses(other, batch.to(world.device))
    assert actual["loss"].item() == pytest.approx(expected["loss"].item(), rel=share)
    gradients = [
        torch.cat([gradient.cpu().flatten() for gradient in torch.autograd.grad(losses["loss"], list(of.parameters()))])
        for losses, of in ((actual, other), (expected, model))
    ]
    assert (gradients[0] - gradients[1]).norm() <= share * gradients[1].norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_that_is_compiled_for_cuda_is_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits_MV = torch.randn(7, 11, dtype=dtype, requires_grad=True)
    labels_M = torch.tensor([3, IGNORED, 10, 0, IGNORED, 5, 5])
    (loss, correct, losses_M), (plain_loss, plain_correct, plain_M) = (
        cross_entropy(logits_MV, labels_M) for cross_entropy in (chunked_cross_entropy, eager_cross_entropy)
    )
    torch.testing.assert_close(plain_loss, loss)
    torch.testing.assert_close(plain_M, losses_M)
    assert losses_M.sum().item() == pytest.approx(loss.item())
    assert plain_correct == correct
    gradients = [torch.autograd.grad(total, logits_MV)[0] for total in (loss, plain_loss)]
    torch.testing.assert_close(*gradients)


def test_evaluation_is_the_mean_over_all_heldout_targets() -> None:
    task, model = task_of(sentences(40)), model_of().eval()
    assert len({batch.targets for batch in task.heldout}) > 1
    losses = [task.losses(model, batch) for batch in task.heldout]
    targets = sum(batch.targets for batch in task.heldout)
    assert task.evaluate(model) == pytest.approx(
        {
            "loss": sum(loss["loss"].item() for loss in losses) / targets,
            "accuracy": sum(loss["correct"].item() for loss in losses) / targets,
        }
    )


def test_each_corpus_of_a_mixture_has_the_loss_of_its_own_rows() -> None:
    mixture = joined([sentences(30), sentences(30, seed=1), sentences(30, seed=2)], (0.5, 0.3, 0.2))
    names = ("books", "wiki", "talks")
    heldout = heldout_batches(mixture, Masking(), CPU, most_rows=20, micro_batch_rows=7)
    task = replace(task_of(mixture, batch_rows=20, micro_batch_rows=20), heldout=heldout, corpora=names)
    model = model_of().eval()
    (batch,) = task.micro_batches(3, 0.5)
    rows_B, _ = mixture.order.rows(task.seed, 3, 20)
    sums = task.losses(model, batch)
    logits_BMV = compute_logits(model, batch, CPU).view(20, -1, VOCABULARY)
    losses_BM = F.cross_entropy(logits_BMV.transpose(1, 2), batch.labels_BM, ignore_index=IGNORED, reduction="none")
    for number, name in enumerate(names):
        mine = torch.from_numpy(mixture.order.corpora(rows_B) == number)
        assert sums[f"loss/{name}"].item() == pytest.approx(losses_BM[mine].sum().item(), rel=1e-5)
        assert sums[f"targets/{name}"].item() == (batch.labels_BM[mine] != IGNORED).sum()
    assert sum(int(sums[f"targets/{name}"]) for name in names) == batch.targets
    measured, targets = task.evaluate(model), dict.fromkeys(names, 0.0)
    for one in task.heldout:
        for name in names:
            targets[name] += float(task.losses(model, one)[f"targets/{name}"])
    assert [int(count > 0) for count in targets.values()] == [1, 1, 1]
    weighted = sum(measured[f"loss/{name}"] * targets[name] for name in names)
    assert measured["loss"] == pytest.approx(weighted / sum(targets.values()), rel=1e-6)


def test_what_has_been_read_of_a_corpus_is_counted_from_its_rows() -> None:
    mixture = joined([sentences(9), sentences(50, seed=1)], (0.75, 0.25))
    task = replace(task_of(mixture, batch_rows=8), corpora=("few", "many"))
    steps = [mixture.order.rows(task.seed, step, 8) for step in range(50)]
    for number, (name, read) in enumerate(task.corpus_progress(50).items()):
        mine = np.concatenate([rows_B[mixture.order.corpora(rows_B) == number] for rows_B, _ in steps])
        assert read["epochs"] == pytest.approx(len(mine) / mixture.order.sizes[number], abs=0.2), name
        tokens = (mixture.assemble(mine).segments_BL > 0).sum()
        assert read["tokens"] == pytest.approx(tokens, rel=0.02)


def test_heldout_masks_are_fixed_at_the_first_rate() -> None:
    rows, masking = sentences(40), Masking(rate=0.2, final_rate=0.4)
    one = heldout_batches(rows, masking, CPU, most_rows=8, micro_batch_rows=3)
    other = heldout_batches(rows, masking, CPU, most_rows=8, micro_batch_rows=8)
    assert [len(batch.ids_BL) for batch in one] == [3, 3, 2]
    assert torch.equal(ids_of(one), ids_of(other))
    assert torch.equal(labels_of(one), labels_of(other))
    expected = [int(np.floor(0.2 * (row > 0).sum() + 0.5)) for row in other[0].segments_BL.numpy()]
    assert other[0].targets == sum(expected)
    everything = heldout_batches(rows, masking, CPU, most_rows=10**6, micro_batch_rows=10**6)
    assert len(everything[0].ids_BL) == len(rows)


def test_scores_are_computed_in_the_precision_of_the_world() -> None:
    (batch,), model = task_of(sentences(40)).micro_batches(0, 0.0), model_of()
    assert compute_logits(model, batch, CPU).dtype == torch.float32
    assert compute_logits(model, batch, World(CPU.device, torch.bfloat16)).dtype == torch.bfloat16
    assert model.output_bias.dtype == torch.float32
