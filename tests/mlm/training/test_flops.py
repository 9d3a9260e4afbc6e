import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlm.model.encoder import EncoderConfig
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.training import flops
from tests.mlm.samples import segment_mask_of


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("transform", [False, True])
def test_flops_are_those_of_the_matrix_products_that_training_runs(gated: bool, transform: bool) -> None:
    B, L, M, V = 3, 16, 4, 50
    encoder = EncoderConfig(width=24, heads=2, feedforward_width=40, layers=3, gated=gated)
    config = ModelConfig(encoder=encoder, transform=transform)
    model = MaskedLanguageModel(config, V, L)
    predicted_BM = torch.randint(L, (B, M))
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(V, (B, L)), segment_mask_of([[L]] * B, L), predicted_BM).sum().backward()
    assert counter.get_total_flops() == B * L * flops.flops_per_token(config, V, context=L, predicted_share=M / L)
