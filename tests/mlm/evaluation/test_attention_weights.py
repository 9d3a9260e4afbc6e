"""The attention weights that are looked at are those that the model computes with."""

import pytest
import torch
from torch import Tensor, nn

from mlm.evaluation.attention_weights import attention_weights
from mlm.evaluation.fill_blanks import one_row
from mlm.model.attention import Attention
from mlm.model.encoder import EncoderConfig, LearnedPositions, RotaryPositions, SinusoidalPositions
from mlm.model.heads import ModelConfig
from tests.mlm import samples

POSITIONS = (RotaryPositions(), LearnedPositions(), SinusoidalPositions())


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", POSITIONS, ids=lambda positions: positions.kind)
def test_the_weights_applied_to_the_values_give_the_output_of_the_fast_path(
    positions: RotaryPositions | LearnedPositions | SinusoidalPositions, norm: str
) -> None:
    shape = EncoderConfig(width=16, heads=2, feedforward_width=24, layers=3, positions=positions, norm=norm)  # type: ignore[arg-type]
    model = samples.model_of(ModelConfig(encoder=shape)).eval()
    inputs, outputs = list[Tensor](), list[Tensor]()

    def keep(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(given[0])
        outputs.append(output)

    layers = [module for module in model.modules() if isinstance(module, Attention)]
    for layer in layers:
        layer.register_forward_hook(keep)
    found = attention_weights(model.encoder, one_row([4, 9, 17, 23, 4, 31, 12], 4))
    assert [tuple(weights_BHLL.shape) for weights_BHLL in found] == [(1, 2, 7, 7)] * 3
    for layer, hidden_BLD, output_BLD, weights_BHLL in zip(layers, inputs, outputs, found, strict=True):
        torch.testing.assert_close(weights_BHLL.sum(dim=-1), torch.ones(1, 2, 7))
        value_BHLK = layer.qkv(hidden_BLD)[..., 32:].view(1, 7, 2, 8).transpose(1, 2)
        mixed_BLD = (weights_BHLL @ value_BHLK).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.output(mixed_BLD), output_BLD, rtol=1e-5, atol=1e-6)


def test_looking_at_the_weights_leaves_no_trace_in_the_model() -> None:
    model = samples.model_of().eval()
    attention_weights(model.encoder, one_row([9, 17], 4))
    assert not any(module._forward_hooks for module in model.modules())
