"""The estimates of memory and communication in the preview."""

import pytest

from mlm import dry_run
from mlm.model.encoder import EncoderConfig


def test_communication_is_bytes_over_bandwidth_beside_computing() -> None:
    server = dry_run.Server("four", gpus=4, peak_flops=100.0, bandwidth=6.0)
    assert dry_run.communicated_bytes(2, 4) == 8 * 2 * 3 / 4
    # 12 bytes at 6 a second take 2 seconds; 300 operations at half of 100 a second take 6
    assert dry_run.communication_share(2, 300.0, server, 0.5) == pytest.approx(2 / 8)


def test_every_thread_has_gradients_and_activations_of_its_own() -> None:
    encoder = EncoderConfig(width=24, heads=2, feedforward_width=40, layers=3)
    one, three = (dry_run.estimate_memory(encoder, 1000, 64, 16, 500, 2, threads) for threads in (1, 3))
    # a weight, two moments and, of each thread, a gradient of 4 bytes and a copy in bfloat16
    assert (one.weights_and_optimizer, three.weights_and_optimizer) == (1000 * 18, 1000 * 30)
    assert (three.activations, three.scores) == (3 * one.activations, 3 * one.scores)
