"""Dropout is a function of its key, has its rate and keeps the mean; threads do not draw from one another."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlm.model.attention import BLOCK, Attention, SegmentMask, fast_attention
from mlm.model.dropout import Dropout, drop, seed_dropout
from mlm.model.encoder import Block, EncoderConfig, Residual
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from tests.mlm.samples import rows_of, segment_mask_of


@pytest.mark.parametrize("probability", [1e-4, 0.1, 0.3, 0.5, 0.9, 0.99999])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_rate_is_exact_and_the_mean_is_kept(probability: float, dtype: torch.dtype) -> None:
    seed_dropout(1)
    count = 1_000_003
    dropped = drop(torch.ones(count, dtype=dtype), probability).double()
    rate = (dropped == 0).double().mean().item()
    assert rate == pytest.approx(probability, abs=1 / 2**16 + 5 * math.sqrt(probability * (1 - probability) / count))
    (factor,) = set(dropped[dropped != 0].tolist())
    assert factor * (1 - probability) == pytest.approx(1, rel=0.4 if probability > 0.99 else 2**-8)
    deviation = math.sqrt(factor / count)
    assert dropped.mean().item() == pytest.approx(1, abs=5 * deviation + (2**-8 if dtype == torch.bfloat16 else 0))


def test_neighbors_calls_and_keys_are_independent() -> None:
    def mask(*key: int) -> Tensor:
        seed_dropout(*key)
        return drop(torch.ones(400, 500), 0.5) - 1

    seed_dropout(7, 3, 0)
    first, second = (drop(torch.ones(400, 500), 0.5) - 1 for _ in range(2))
    assert torch.equal(mask(7, 3, 0), first)
    others = [second, mask(8, 3, 0), mask(7, 4, 0), mask(7, 3, 1), mask(3, 7, 0), mask(0, 3, 7)]
    others += [first.roll(1), first.roll(4), first.roll(1, dims=0), first.T.reshape(400, 500)]
    for other in others:  # each product of two is 1 or -1 with the same chance
        assert abs((first * other).mean().item()) < 5 / math.sqrt(first.numel())


def test_threads_draw_what_each_would_draw_alone() -> None:
    barrier = Barrier(3)

    def drawn(number: int) -> list[Tensor]:
        seed_dropout(0, 0, number)
        found = []
        for _ in range(5):
            barrier.wait(300)
            found.append(drop(torch.ones(1000), 0.5))
        return found

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(drawn, range(3)))
    for number, found in enumerate(together):
        seed_dropout(0, 0, number)
        assert all(torch.equal(drop(torch.ones(1000), 0.5), mask) for mask in found)


def test_evaluation_draws_nothing() -> None:
    states, module = torch.ones(100), Dropout(0.5)
    seed_dropout(5)
    expected = drop(states, 0.5)
    seed_dropout(5)
    assert module.eval()(states) is states
    assert drop(states, 0.0) is states
    assert torch.equal(module.train()(states), expected)


@pytest.mark.parametrize("length", [24, BLOCK + 40])
def test_attention_with_dropout_is_its_formula_with_the_mask_written_out(length: int) -> None:
    torch.manual_seed(0)
    B, H, K = 2, 2, 4
    query, key, value = (torch.randn(B, H, length, K, dtype=torch.float64, requires_grad=True) for _ in range(3))
    segments_BL, positions_BL = rows_of([[length]] * B, length)
    segment_mask = SegmentMask.of(segments_BL, positions_BL, torch.float64)
    seed_dropout(2)
    mask_BHLL = torch.cat(
        [
            drop(torch.ones(B, H, min(BLOCK, length - start), length, dtype=torch.float64), 0.3)
            for start in range(0, length, BLOCK)
        ],
        dim=2,
    )
    seed_dropout(2)
    actual = fast_attention(query, key, value, segment_mask, None, 0.3)
    expected = ((query @ key.transpose(-1, -2) / K**0.5).softmax(dim=-1) * mask_BHLL) @ value
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(actual)
    for one, other in zip(
        *(torch.autograd.grad(states, (query, key, value), upstream) for states in (actual, expected)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_model_with_dropout_has_the_gradients_of_a_plain_one_with_the_masks_written_out() -> None:
    torch.manual_seed(0)
    config = EncoderConfig(width=8, heads=2, feedforward_width=12, layers=1, dropout=0.4)
    model = MaskedLanguageModel(ModelConfig(encoder=config), 30, 6).double()
    ids_BL, predicted_BM = torch.randint(30, (3, 6)), torch.tensor([[0, 2], [1, 5], [3, 4]])
    segment_mask = segment_mask_of([[6]] * 3, 6)
    shapes = [(3, 6, 8), (3, 2, 2, 6), (3, 2, 8), (3, 2, 8)]
    seed_dropout(4)
    embedded, attended, projected, fed = (drop(torch.ones(shape, dtype=torch.float64), 0.4) for shape in shapes)
    seed_dropout(4)
    actual_MV = model(ids_BL, segment_mask, predicted_BM)

    (block,), embeddings = model.encoder.blocks, model.encoder.embeddings
    assert isinstance(block, Block)
    assert isinstance(block.attention, Residual)
    assert isinstance(block.feedforward, Residual)
    assert isinstance(block.attention.sublayer, Attention)
    assert model.encoder.rotary is not None
    attention, feedforward = block.attention.sublayer, block.feedforward
    hidden_BLD = embeddings.norm(embeddings.tokens(ids_BL)) * embedded
    rotation = model.encoder.rotary(segment_mask.positions_BL, torch.float64)
    query, key, value = attention.by_head(attention.qkv(hidden_BLD), 2, rotation)
    rows = torch.arange(3)[:, None]
    query = query.transpose(1, 2)[rows, predicted_BM].transpose(1, 2)
    weights = (query @ key.transpose(-1, -2) / 4**0.5).softmax(dim=-1) * attended
    mixed = attention.output((weights @ value).transpose(1, 2).flatten(2)) * projected
    hidden_BMD = hidden_BLD[rows, predicted_BM] + mixed
    hidden_BMD = hidden_BMD + feedforward.sublayer(feedforward.norm(hidden_BMD)) * fed
    hidden_MD = model.encoder.final_norm(hidden_BMD).flatten(0, 1)
    expected_MV = F.linear(hidden_MD, embeddings.tokens.weight, model.output_bias)

    torch.testing.assert_close(actual_MV, expected_MV)
    labels_M, used = torch.randint(30, (6,)), [p for p in model.parameters() if p.requires_grad]
    losses = (F.cross_entropy(scores, labels_M, reduction="sum") for scores in (actual_MV, expected_MV))
    gradients = [torch.autograd.grad(loss, used, allow_unused=True, materialize_grads=True) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
