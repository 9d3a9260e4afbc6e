import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlm.model.encoder import EncoderConfig
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.training import flops
from tests.mlm.samples import segment_mask_of


def test_communication_is_bytes_over_bandwidth_beside_computing() -> None:
    server = flops.Server("four", gpus=4, peak_flops=100.0, bandwidth=6.0)
    assert flops.communicated_bytes(2, 4) == 8 * 2 * 3 / 4
    # 12 bytes at 6 a second take 2 seconds; 300 operations at half of 100 a second take 6
    assert flops.communication_share(2, 300.0, server, 0.5) == pytest.approx(2 / 8)


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


def test_every_thread_has_gradients_and_activations_of_its_own() -> None:
    encoder = EncoderConfig(width=24, heads=2, feedforward_width=40, layers=3)
    one, three = (flops.memory(encoder, 1000, 64, 16, 500, 2, threads) for threads in (1, 3))
    # a weight, two moments and, of each thread, a gradient of 4 bytes and a copy in bfloat16
    assert (one.weights_and_optimizer, three.weights_and_optimizer) == (1000 * 18, 1000 * 30)
    assert (three.activations, three.scores) == (3 * one.activations, 3 * one.scores)
