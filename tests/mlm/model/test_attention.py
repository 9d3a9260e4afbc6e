import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mlm.evaluation.attention_weights import reference_attention
from mlm.model.attention import (
    BLOCK,
    LONG,
    Attention,
    Rotary,
    SegmentMask,
    fast_attention,
    rotate,
    segment_blocks,
)
from mlm.model.encoder import Encoder, EncoderConfig, LearnedPositions, RotaryPositions, SinusoidalPositions
from tests.mlm.samples import rows_of, segment_mask_of

SHAPES = [(1, 1, 1, 2), (2, 7, 3, 4), (3, 16, 2, 8), (2, 33, 4, 6), (2, 2 * BLOCK + 9, 1, 4)]  # B, L, H, K
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
POSITIONS = [SinusoidalPositions(), LearnedPositions(), RotaryPositions()]


def random_layout(B: int, L: int, dtype: torch.dtype, device: str = "cpu", *, compiled: bool = False) -> SegmentMask:
    """Return rows cut at random; the first one is padding alone."""
    borders_BL = torch.rand(B, L) < 0.3
    segments_BL = (borders_BL.cumsum(dim=1) + 1).to(torch.int32)
    segments_BL[:, L - L // 4 :] = 0
    segments_BL[0] = 0
    positions_BL = torch.zeros(B, L, dtype=torch.int64, device=device)
    return SegmentMask.of(segments_BL.to(device), positions_BL, dtype, compiled=compiled)


def random_inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    B, L, H, K = shape
    q_BHLK, k_BHLK, v_BHLK = torch.randn(3, B, H, L, K).to(device, dtype).unbind(0)
    return q_BHLK.requires_grad_(), k_BHLK.requires_grad_(), v_BHLK.requires_grad_()


def written_out(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, segments_BL: Tensor) -> Tensor:
    """Attend position by position, over the positions of its own segment alone."""
    out_BHLK = torch.zeros_like(v_BHLK)
    B, H, L, K = q_BHLK.shape
    for b, h, i in itertools.product(range(B), range(H), range(L)):
        own = [j for j in range(L) if segments_BL[b, j] == segments_BL[b, i]]
        exponentials = [math.exp(sum(q_BHLK[b, h, i] * k_BHLK[b, h, j]) / math.sqrt(K)) for j in own]
        for weight, j in zip(exponentials, own, strict=True):
            out_BHLK[b, h, i] += weight / sum(exponentials) * v_BHLK[b, h, j]
    return out_BHLK


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_returns_the_shape_of_its_values_and_a_weight_for_each_pair(shape: tuple[int, int, int, int]) -> None:
    B, L, H, K = shape
    q_BHLK, k_BHLK, v_BHLK = random_inputs(shape, torch.float32)
    segment_mask = random_layout(B, L, torch.float32)
    mixed_BHLK, weights_BHLL = reference_attention(q_BHLK, k_BHLK, v_BHLK, segment_mask.segments_BL)
    assert mixed_BHLK.shape == (B, H, L, K)
    assert weights_BHLL.shape == (B, H, L, L)
    assert segment_mask.bias(None).shape == (B, 1, L, L)
    assert fast_attention(q_BHLK, k_BHLK, v_BHLK, segment_mask, None, 0.0).shape == (B, H, L, K)


@pytest.mark.parametrize(("B", "L", "H", "K"), SHAPES)
@pytest.mark.parametrize("biases", [True, False])
def test_the_attention_layer_keeps_the_shape_of_the_hidden_states(B: int, L: int, H: int, K: int, biases: bool) -> None:
    attention = Attention(H * K, H, biases, dropout=0.0)
    segment_mask = random_layout(B, L, torch.float32)
    rotation = Rotary(K, 10_000.0)(segment_mask.positions_BL, torch.float32)
    assert rotation[0].shape == rotation[1].shape == (B, 1, L, K)
    assert attention(torch.randn(B, L, H * K), segment_mask, rotation, None).shape == (B, L, H * K)
    queries_BM = torch.randint(L, (B, 3))
    assert attention(torch.randn(B, L, H * K), segment_mask, rotation, queries_BM).shape == (B, 3, H * K)
    assert (attention.qkv.bias is not None) == (attention.output.bias is not None) == biases


def test_the_reference_is_the_formula() -> None:
    torch.manual_seed(0)
    q_BHLK, k_BHLK, v_BHLK = (tensor.detach() for tensor in random_inputs((2, 7, 2, 4), torch.float64))
    segments_BL = random_layout(2, 7, torch.float64).segments_BL
    mixed_BHLK, _ = reference_attention(q_BHLK, k_BHLK, v_BHLK, segments_BL)
    torch.testing.assert_close(mixed_BHLK, written_out(q_BHLK, k_BHLK, v_BHLK, segments_BL), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_weights_sum_to_one_and_are_zero_across_segments(shape: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    segments_BL = random_layout(*shape[:2], torch.float64).segments_BL
    _, weights_BHLL = reference_attention(*random_inputs(shape, torch.float64), segments_BL)
    torch.testing.assert_close(weights_BHLL.sum(dim=-1), torch.ones(shape[0], shape[2], shape[1]).double())
    apart_BHLL = (segments_BL[:, :, None] != segments_BL[:, None, :])[:, None].expand_as(weights_BHLL)
    assert (weights_BHLL[apart_BHLL] == 0).all()
    assert (weights_BHLL[~apart_BHLL] > 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
@pytest.mark.parametrize("device", DEVICES)
def test_fast_attention_and_its_gradients_equal_the_reference(
    shape: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float, device: str
) -> None:
    torch.manual_seed(0)
    inputs = random_inputs(shape, dtype, device)
    segment_mask = random_layout(*shape[:2], dtype, device)
    expected_BHLK, _ = reference_attention(*inputs, segment_mask.segments_BL)
    actual_BHLK = fast_attention(*inputs, segment_mask, None, 0.0)
    torch.testing.assert_close(actual_BHLK, expected_BHLK, rtol=0, atol=tolerance)
    upstream_BHLK = torch.randn_like(expected_BHLK)
    for actual, expected in zip(
        torch.autograd.grad(actual_BHLK, inputs, upstream_BHLK),
        torch.autograd.grad(expected_BHLK, inputs, upstream_BHLK),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_fast_attention_is_within_its_roundings_of_the_reference(
    shape: tuple[int, int, int, int], device: str
) -> None:
    """A rounding to bfloat16 changes a number by a share of 2^-9 at the most.

    Three of them (the scaled query, the product, the biased score) move a score by 3 * 2^-9 of the largest sum of
    |query * key| / sqrt(K), the softmax by twice that as a share of its weights; those and the output are rounded too.
    """
    torch.manual_seed(0)
    unit, B, L, K = 2.0**-9, shape[0], shape[1], shape[3]
    inputs = random_inputs(shape, torch.bfloat16, device)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    segment_mask = random_layout(B, L, torch.bfloat16, device)
    expected_BHLK, _ = reference_attention(exact[0], exact[1], exact[2], segment_mask.segments_BL)
    actual_BHLK = fast_attention(*inputs, segment_mask, None, 0.0)
    largest_score = (exact[0].abs() @ exact[1].abs().transpose(-1, -2)).max().item() / math.sqrt(K)
    bound = exact[2].abs().max().item() * unit * (2 * 3 * largest_score + 2)
    assert (actual_BHLK - expected_BHLK).abs().max().item() <= bound

    upstream_BHLK = torch.randn_like(actual_BHLK)
    actual = torch.cat(torch.autograd.grad(actual_BHLK, inputs, upstream_BHLK)).double()
    expected = torch.cat(torch.autograd.grad(expected_BHLK, exact, upstream_BHLK.double()))
    # As lengths: the weights, their gradient, that of the scores and the product that each gradient is, rounded once.
    assert (actual - expected).norm() <= 4 * unit * expected.norm()


@pytest.mark.parametrize("shape", [*SHAPES, (2, LONG + 60, 2, 4)])
@pytest.mark.parametrize("device", DEVICES)
def test_chosen_queries_attend_as_among_all_positions(shape: tuple[int, int, int, int], device: str) -> None:
    torch.manual_seed(0)
    B, L, _, _ = shape
    inputs = random_inputs(shape, torch.float64, device)
    segment_mask = random_layout(B, L, torch.float64, device)
    queries_BM = torch.randint(L, (B, 1 + L // 3), device=device)
    index_BHMK = queries_BM[:, None, :, None].expand(-1, shape[2], -1, shape[3])
    expected_BHMK = fast_attention(*inputs, segment_mask, None, 0.0).gather(2, index_BHMK)
    actual_BHMK = fast_attention(inputs[0].gather(2, index_BHMK), *inputs[1:], segment_mask, queries_BM, 0.0)
    upstream_BHMK = torch.randn_like(expected_BHMK)
    pairs = [(actual_BHMK, expected_BHMK)]
    pairs += zip(
        *(torch.autograd.grad(mixed, inputs, upstream_BHMK) for mixed in (actual_BHMK, expected_BHMK)), strict=True
    )
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, 5 * BLOCK + 7])
def test_a_block_is_computed_where_any_two_of_its_positions_share_a_segment(length: int) -> None:
    torch.manual_seed(0)
    segments_BL = random_layout(6, length, torch.float32).segments_BL
    segments_BL[1] = 1  # one segment, and rows of few and of many
    segments_BL[2] = (torch.arange(length) // (BLOCK // 2) + 1).int()
    segments_BL[3, length // 2 :] = 0
    blocks = segment_blocks(segments_BL)
    computed_BNN = blocks.to_dense()[:, 0]
    starts = range(0, length, BLOCK)
    expected_BNN = torch.tensor(
        [
            [[(row_L[i : i + BLOCK, None] == row_L[None, j : j + BLOCK]).any().item() for j in starts] for i in starts]
            for row_L in segments_BL
        ]
    )
    assert torch.equal(computed_BNN.bool(), expected_BNN)
    assert blocks.shape == (6, 1, length, length)
    i_L = torch.arange(length)
    for row in range(6):
        within_LL = blocks.mask_mod(torch.tensor(row), torch.tensor(0), i_L[:, None], i_L[None])
        assert torch.equal(within_LL, segments_BL[row, :, None] == segments_BL[row, None])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(3, 24, 2, 16), (3, 200, 2, 64), (2, 512, 3, 32)])
def test_attention_by_blocks_and_its_gradients_equal_attention_by_bias(shape: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    inputs = random_inputs(shape, torch.bfloat16, "cuda")
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    segment_mask = random_layout(*shape[:2], torch.bfloat16, "cuda", compiled=True)
    torch.compiler.reset()
    actual_BHLK = torch.compile(fast_attention, dynamic=False)(*inputs, segment_mask, None, 0.0)
    expected_BHLK, _ = reference_attention(exact[0], exact[1], exact[2], segment_mask.segments_BL)
    upstream_BHLK = torch.randn_like(actual_BHLK)
    pairs = [(actual_BHLK, expected_BHLK)]
    gradients = torch.autograd.grad(actual_BHLK, inputs, upstream_BHLK)
    pairs += zip(gradients, torch.autograd.grad(expected_BHLK, exact, upstream_BHLK.double()), strict=True)
    for actual, expected in pairs:  # as in the test before, by lengths
        assert (actual - expected).norm() <= 4 * 2.0**-9 * expected.norm()


def test_in_long_rows_queries_read_only_the_keys_near_their_segments() -> None:
    torch.manual_seed(0)
    length = 4 * BLOCK + 8
    segment_mask = segment_mask_of([[50] * 10 + [20], [33] * 15 + [25]], length, torch.float64)
    key_ranges = [(reach.start, reach.stop) for reach, _ in segment_mask.key_blocks]
    assert key_ranges == [(0, 150), (99, 300), (231, 400), (350, 520), (495, 520)]
    inputs = random_inputs((2, length, 2, 4), torch.float64)
    expected_BHLK, _ = reference_attention(*inputs, segment_mask.segments_BL)
    with FlopCounterMode(display=False) as counter:
        actual_BHLK = fast_attention(*inputs, segment_mask, None, 0.0)
    scores = sum(BLOCK * (stop - start) for start, stop in key_ranges[:-1]) + 8 * (520 - 495)
    assert counter.get_total_flops() == 2 * 2 * (2 * 2 * 4) * scores  # two products, rows, heads; two FLOPs each
    torch.testing.assert_close(actual_BHLK, expected_BHLK, rtol=0, atol=1e-14)
    upstream_BHLK = torch.randn_like(expected_BHLK)
    gradients = [torch.autograd.grad(mixed, inputs, upstream_BHLK) for mixed in (actual_BHLK, expected_BHLK)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("chosen", [False, True])
def test_a_token_costs_the_same_in_rows_of_any_length(chosen: bool) -> None:
    torch.manual_seed(0)

    def cost(length: int) -> float:
        segment_mask = segment_mask_of([[32] * (length // 32)], length, torch.float32)
        queries_BM = torch.randperm(length)[None, : length // 4]
        inputs = random_inputs((1, length, 1, 4), torch.float32)
        query_BHMK = inputs[0][:, :, queries_BM[0]] if chosen else inputs[0]
        with FlopCounterMode(display=False) as counter:
            fast_attention(query_BHMK, *inputs[1:], segment_mask, queries_BM if chosen else None, 0.0)
        return float(counter.get_total_flops()) / length

    assert cost(8192) == pytest.approx(cost(1024), rel=0.1)  # at both ends of a row some keys are missing


def test_long_rows_without_a_prediction_have_no_outputs() -> None:
    inputs = random_inputs((2, 1024, 2, 4), torch.float32)
    nothing_BM = torch.zeros(2, 0, dtype=torch.int64)
    segment_mask = segment_mask_of([[1000], [512, 512]], 1024, torch.float32)
    mixed_BHMK = fast_attention(inputs[0][:, :, :0], *inputs[1:], segment_mask, nothing_BM, 0.0)
    assert mixed_BHMK.shape == (2, 2, 0, 4)


def test_other_segments_get_no_gradient_at_all() -> None:
    torch.manual_seed(0)
    inputs = random_inputs((1, 9, 2, 4), torch.float32)
    mixed_BHLK = fast_attention(*inputs, segment_mask_of([[4, 3]], 9), None, 0.0)
    for gradient in torch.autograd.grad(mixed_BHLK[:, :, :4].square().sum(), inputs):
        assert gradient[:, :, :4].abs().min() > 0
        assert (gradient[:, :, 4:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_bias_across_segments_is_finite_and_its_exponential_zero(dtype: torch.dtype) -> None:
    bias_LL = segment_mask_of([[2, 1]], 4, dtype).bias(None)[0, 0]
    assert bias_LL.dtype == dtype
    assert bias_LL.isfinite().all()
    together = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert bias_LL.exp().tolist() == together


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_padding_alone_stay_finite_in_bfloat16(device: str) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(width=16, heads=2, feedforward_width=32, layers=2)
    encoder = Encoder(config, vocabulary_size=20, row_length=8).to(device)
    segments_BL, positions_BL = rows_of([[], [3]], 8)
    segment_mask = SegmentMask.of(segments_BL.to(device), positions_BL.to(device), torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        hidden_BLD = encoder(torch.zeros(2, 8, dtype=torch.int64, device=device), segment_mask)
    assert hidden_BLD.isfinite().all()
    for gradient in torch.autograd.grad(hidden_BLD.float().square().sum(), list(encoder.parameters())):
        assert gradient.isfinite().all()


def test_large_scores_stay_finite_in_bfloat16() -> None:
    torch.manual_seed(0)
    inputs = random_inputs((2, 8, 2, 4), torch.bfloat16)
    q_BHLK, k_BHLK, v_BHLK = inputs
    segment_mask = segment_mask_of([[], [5]], 8, torch.bfloat16)
    mixed_BHLK = fast_attention(q_BHLK * 1e3, k_BHLK * 1e3, v_BHLK, segment_mask, None, 0.0)
    assert mixed_BHLK.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(mixed_BHLK.sum(), inputs))


def test_attention_drops_weights_in_training_only() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, biases=True, dropout=0.5)
    hidden_BLD, segment_mask = torch.randn(1, 6, 8), segment_mask_of([[6]], 6)
    assert not torch.equal(
        attention(hidden_BLD, segment_mask, None, None), attention(hidden_BLD, segment_mask, None, None)
    )
    attention.eval()
    expected_BLD = attention(hidden_BLD, segment_mask, None, None)
    attention.dropout = 0.0
    assert torch.equal(attention.train()(hidden_BLD, segment_mask, None, None), expected_BLD)


def test_dropout_keeps_the_mean_of_the_weights() -> None:
    torch.manual_seed(0)
    zeros = torch.zeros(1, 1, 100, 4)
    ones = torch.ones(1, 1, 100, 4)
    mixed_BHLK = fast_attention(zeros, zeros, ones, segment_mask_of([[100]], 100), None, 0.25)
    # 100 * 100 weights, each kept with probability 3/4 and then worth 4/3 of itself: bound at 5 standard deviations.
    assert mixed_BHLK[..., 0].mean().item() == pytest.approx(1, abs=5 * math.sqrt(0.25 / 0.75) / 100)


@pytest.mark.gpu
def test_compiled_attention_drops_weights_too() -> None:
    torch.manual_seed(0)
    zeros, ones = (torch.full((1, 1, 100, 16), value, dtype=torch.bfloat16, device="cuda") for value in (0.0, 1.0))
    segments_BL, positions_BL = (tensor.cuda() for tensor in rows_of([[100]], 100))
    segment_mask = SegmentMask.of(segments_BL, positions_BL, torch.bfloat16, compiled=True)
    torch.compiler.reset()
    mixed_BHLK = torch.compile(fast_attention, dynamic=False)(zeros, zeros, ones, segment_mask, None, 0.25)[
        ..., 0
    ].float()
    assert mixed_BHLK.std().item() == pytest.approx(math.sqrt(0.25 / 0.75 / 100), rel=0.5)
    assert mixed_BHLK.mean().item() == pytest.approx(1, abs=5 * math.sqrt(0.25 / 0.75) / 100 + 2.0**-8)


def test_rotary_turns_each_plane_by_position_over_wavelength() -> None:
    torch.manual_seed(0)
    K, theta = 8, 100.0
    states_BHLK = torch.randn(1, 2, 5, K, dtype=torch.float64)
    positions_BL = torch.tensor([[0, 1, 2, 0, 7]])
    rotated_BHLK = rotate(states_BHLK, *Rotary(K, theta).double()(positions_BL, torch.float64))
    planes_BHLk = torch.complex(states_BHLK[..., : K // 2], states_BHLK[..., K // 2 :])
    angles_Lk = positions_BL[0, :, None] * torch.tensor(
        [theta ** (-2 * plane / K) for plane in range(K // 2)], dtype=torch.float64
    )
    turned_BHLk = planes_BHLk * torch.polar(torch.ones_like(angles_Lk), angles_Lk)
    expected_BHLK = torch.cat([turned_BHLk.real, turned_BHLk.imag], dim=-1)
    torch.testing.assert_close(rotated_BHLK, expected_BHLK, rtol=0, atol=2e-6)  # frequencies are kept in float32


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    rotary = Rotary(8, 10_000.0).double()
    q_BHLK, k_BHLK = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(query_position: int, key_position: int) -> float:
        query = rotate(q_BHLK, *rotary(torch.tensor([[query_position]]), torch.float64))
        key = rotate(k_BHLK, *rotary(torch.tensor([[key_position]]), torch.float64))
        return (query * key).sum().item()

    for distance in (-30, -1, 0, 1, 30):
        scores = [score(start + distance, start) for start in (40, 41, 100, 400)]
        assert scores == pytest.approx([scores[0]] * 4, rel=0, abs=1e-12)
    assert len({round(score(distance, 0), 6) for distance in range(50)}) == 50


@pytest.mark.parametrize("positions", POSITIONS, ids=lambda positions: positions.kind)
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("embedding_norm", [False, True])
class TestIsolation:
    """Through the whole encoder: what shares a row with a segment changes nothing for it."""

    LENGTHS = (5, 1, 8)

    @pytest.fixture
    def encoder(
        self,
        positions: SinusoidalPositions | LearnedPositions | RotaryPositions,
        norm: str,
        gated: bool,
        embedding_norm: bool,
    ) -> Encoder:
        config = EncoderConfig.model_validate(
            {
                "width": 16,
                "heads": 2,
                "feedforward_width": 24,
                "layers": 2,
                "positions": positions,
                "norm": norm,
                "gated": gated,
                "embedding_norm": embedding_norm,
            }
        )
        torch.manual_seed(0)
        return Encoder(config, vocabulary_size=30, row_length=20).double().eval()

    @pytest.fixture
    def segments(self) -> list[Tensor]:
        return [
            torch.randint(30, (length,), generator=torch.Generator().manual_seed(length)) for length in self.LENGTHS
        ]

    def encode(self, encoder: Encoder, *segments: Tensor, length: int | None = None) -> list[Tensor]:
        """Return the hidden states of segments that share a row, padded to `length`."""
        lengths = [len(segment) for segment in segments]
        length = length or sum(lengths)
        ids_BL = torch.cat([*segments, torch.zeros(length - sum(lengths), dtype=torch.int64)])[None]
        hidden_BLD = encoder(ids_BL, segment_mask_of([lengths], length, torch.float64))
        return list(hidden_BLD[0, : sum(lengths)].split(lengths))

    def test_packed_is_the_same_as_alone(self, encoder: Encoder, segments: list[Tensor]) -> None:
        together = self.encode(encoder, *segments, length=18)
        for segment, hidden in zip(segments, together, strict=True):
            torch.testing.assert_close(hidden, self.encode(encoder, segment)[0], rtol=0, atol=1e-12)

    def test_segments_in_another_order_give_their_states_in_that_order(
        self, encoder: Encoder, segments: list[Tensor]
    ) -> None:
        together = self.encode(encoder, *segments)
        for order in itertools.permutations(range(3)):
            permuted = self.encode(encoder, *(segments[i] for i in order))
            for i, hidden in zip(order, permuted, strict=True):
                torch.testing.assert_close(hidden, together[i], rtol=0, atol=1e-12)

    def test_a_token_changes_every_state_of_its_segment_and_no_other(
        self, encoder: Encoder, segments: list[Tensor]
    ) -> None:
        before = self.encode(encoder, *segments)
        segments[0][2] = (segments[0][2] + 1) % 30
        after = self.encode(encoder, *segments)
        assert ((before[0] - after[0]).abs().amax(dim=-1) > 1e-6).all()
        assert torch.equal(before[1], after[1])
        assert torch.equal(before[2], after[2])
