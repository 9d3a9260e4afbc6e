import pytest

from mlm import cost


def test_communication_is_bytes_over_bandwidth_beside_computing() -> None:
    server = cost.Server("four", gpus=4, peak_flops=100.0, bandwidth=6.0)
    assert cost.communicated_bytes(2, 4) == 8 * 2 * 3 / 4
    # 12 bytes at 6 a second take 2 seconds; 300 operations at half of 100 a second take 6
    assert cost.communication_share(2, 300.0, server, 0.5) == pytest.approx(2 / 8)
