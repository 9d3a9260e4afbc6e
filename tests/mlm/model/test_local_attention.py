"""Attention to near tokens only: each path beside the written-out attention, and borders counted by hand."""

import pytest
import torch
from torch import Tensor

from mlm.evaluation.attention_weights import reference_attention
from mlm.model.attention import BLOCK, LONG, SegmentMask, fast_attention, masked_out, segment_blocks
from mlm.model.encoder import EncoderConfig, LearnedPositions, LocalAttention
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.model.initialize import initialize
from tests.mlm.samples import rows_of, segment_mask_of

LOCAL = LocalAttention(window=6, global_every=3, theta=50.0)


def inputs_of(B: int, L: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, B, 2, L, 4, dtype=torch.float64).unbind(0)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def model_of(layers: int = 4, **settings: object) -> MaskedLanguageModel:
    shape = {"width": 16, "heads": 2, "feedforward_width": 24, "layers": layers, "local_attention": LOCAL, **settings}
    config = ModelConfig(encoder=EncoderConfig.model_validate(shape))
    model = MaskedLanguageModel(config, vocabulary_size=30, row_length=40)
    initialize(model, config.encoder, seed=0)
    return model.double().eval()


def test_a_query_reaches_half_a_window_to_each_side_within_its_segment() -> None:
    segments_BL, _ = rows_of([[7, 2]], 11)
    within_LL = ~masked_out(segments_BL, None, LocalAttention(window=4).reach)[0]
    rows = ["".join(".x"[reached] for reached in row) for row in within_LL.int().tolist()]
    assert rows == [
        "xxx........",
        "xxxx.......",
        "xxxxx......",
        ".xxxxx.....",
        "..xxxxx....",
        "...xxxx....",
        "....xxx....",
        ".......xx..",
        ".......xx..",
        ".........xx",
        ".........xx",
    ]
    assert torch.equal(masked_out(segments_BL, torch.tensor([[5, 0]]), 2)[0], ~within_LL[[5, 0]])


@pytest.mark.parametrize(("window", "length"), [(2, 9), (7, 33), (64, 3 * BLOCK + 9), (64, LONG + 60)])
@pytest.mark.parametrize("alone", [False, True])
def test_fast_local_attention_and_its_gradients_equal_the_reference(window: int, length: int, alone: bool) -> None:
    lengths = [[length], [length // 3, length // 2]]
    segment_mask = segment_mask_of(lengths, length, torch.float64).within(window // 2)
    assert bool(segment_mask.key_blocks) == (length > BLOCK)
    inputs = inputs_of(2, length)
    expected_BHLK, _ = reference_attention(*inputs, segment_mask.segments_BL, window // 2)
    queries_BM = torch.tensor([[0, length - 1], [length // 2, 3]]) if alone else None
    if queries_BM is None:
        actual_BHMK = fast_attention(*inputs, segment_mask, None, 0.0)
    else:
        places = queries_BM[:, None, :, None].expand(2, 2, 2, 4)
        expected_BHLK = expected_BHLK.gather(2, places)
        actual_BHMK = fast_attention(inputs[0].gather(2, places), *inputs[1:], segment_mask, queries_BM, 0.0)
    upstream = torch.randn_like(expected_BHLK)
    torch.testing.assert_close(actual_BHMK, expected_BHLK, rtol=0, atol=1e-13)
    gradients = [torch.autograd.grad(mixed, inputs, upstream) for mixed in (actual_BHMK, expected_BHLK)]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_in_long_rows_local_queries_read_only_the_keys_in_reach() -> None:
    segment_mask = segment_mask_of([[4 * BLOCK]], 4 * BLOCK).within(10)
    assert [(reach.start, reach.stop) for reach, _ in segment_mask.key_blocks] == [
        (max(start - 10, 0), min(start + BLOCK + 10, 4 * BLOCK)) for start in range(0, 4 * BLOCK, BLOCK)
    ]


@pytest.mark.parametrize("reach", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_a_block_is_computed_where_any_of_its_scores_may_be_in_reach(reach: int) -> None:
    length = 4 * BLOCK + 7
    segments_BL, _ = rows_of([[length], [BLOCK + 3, 2 * BLOCK], []], length)
    blocks = segment_blocks(segments_BL, reach)
    i_L = torch.arange(length)
    near_LL = (i_L[:, None] - i_L).abs() <= reach
    for row in range(3):
        within_LL = (segments_BL[row, :, None] == segments_BL[row]) & near_LL
        mask_LL = blocks.mask_mod(torch.tensor(row), torch.tensor(0), i_L[:, None], i_L[None])
        assert torch.equal(mask_LL, within_LL)
        needed = torch.nn.functional.pad(within_LL, (0, -length % BLOCK, 0, -length % BLOCK))
        needed_NN = needed.view(len(needed) // BLOCK, BLOCK, -1, BLOCK).any(dim=3).any(dim=1)
        computed_NN = blocks.to_dense()[row, 0].bool()
        assert not (needed_NN & ~computed_NN).any()
        if row == 0:  # a single segment: no block too many
            assert torch.equal(computed_NN, needed_NN)


@pytest.mark.parametrize("layers", [3, 4])  # the last layer, whose queries are few, is local or not
def test_packed_texts_have_the_scores_of_texts_alone(layers: int) -> None:
    model, lengths = model_of(layers), [9, 17, 14]
    ids_BL = torch.randint(30, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    every_BL = torch.arange(sum(lengths))[None]
    packed_MV = model(ids_BL, segment_mask_of([lengths], sum(lengths), torch.float64), every_BL)
    torch.testing.assert_close(
        model.encoder(ids_BL, segment_mask_of([lengths], sum(lengths), torch.float64))[0]
        @ model.encoder.embeddings.tokens.weight.T,
        packed_MV,
    )
    begin = 0
    for length in lengths:
        part = slice(begin, begin + length)
        mask = segment_mask_of([[length]], length, torch.float64)
        alone_MV = model(ids_BL[:, part], mask, every_BL[:, :length])
        torch.testing.assert_close(packed_MV[part], alone_MV, rtol=0, atol=1e-12)
        begin += length


def test_local_layers_see_near_tokens_alone_and_global_layers_all() -> None:
    ids_BL = torch.arange(20)[None]
    changed_BL = ids_BL.clone()
    changed_BL[0, 19] = 25

    def reached(model: MaskedLanguageModel) -> list[int]:
        """Return the positions whose state depends on the last token."""
        segment_mask = segment_mask_of([[20]], 20, torch.float64)
        with torch.no_grad():
            difference = (model.encoder(ids_BL, segment_mask) - model.encoder(changed_BL, segment_mask)).abs().amax(-1)
        return list(difference[0].nonzero().flatten().tolist())

    assert reached(model_of(layers=1)) == list(range(20))  # layer 0 is global
    local = model_of(layers=3)
    local.encoder.local_layers = [True, True, False]
    del local.encoder.blocks[2], local.encoder.local_layers[2]
    assert reached(local) == list(range(20 - 1 - 2 * LOCAL.reach, 20))


def test_local_layers_have_their_own_wavelengths() -> None:
    everywhere = LocalAttention(window=1000, global_every=2, theta=10_000.0)
    ids_BL, mask = torch.arange(20)[None], segment_mask_of([[20]], 20, torch.float64)
    plain, same, other = (
        model_of(local_attention=local).encoder(ids_BL, mask)
        for local in (None, everywhere, everywhere.model_copy(update={"theta": 50.0}))
    )
    torch.testing.assert_close(plain, same, rtol=0, atol=1e-12)
    assert not torch.allclose(plain, other, atol=1e-3)


def test_local_attention_needs_rotary_positions() -> None:
    with pytest.raises(ValueError, match="rotary"):
        EncoderConfig(local_attention=LOCAL, positions=LearnedPositions())


@pytest.mark.gpu
def test_compiled_local_attention_equals_the_reference() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 512, 32, device="cuda", dtype=torch.bfloat16).unbind(0)
    inputs = (query.requires_grad_(), key.requires_grad_(), value.requires_grad_())
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    segments_BL, positions_BL = (part.cuda() for part in rows_of([[300, 150], [512]], 512))
    segment_mask = SegmentMask.of(segments_BL, positions_BL, torch.bfloat16, compiled=True).within(40)
    torch.compiler.reset()
    actual = torch.compile(fast_attention, dynamic=False)(*inputs, segment_mask, None, 0.0)
    expected, _ = reference_attention(exact[0], exact[1], exact[2], segments_BL, 40)
    upstream = torch.randn_like(actual)
    pairs = [(actual, expected)]
    gradients = torch.autograd.grad(actual, inputs, upstream)
    pairs += zip(gradients, torch.autograd.grad(expected, exact, upstream.double()), strict=True)
    for one, other in pairs:
        assert (one - other).norm() <= 4 * 2.0**-9 * other.norm()
