"""The estimates of memory and communication in the preview."""

import pytest

from configs import UserError
from mlm.dry_run import preview as dry_run
from mlm.dry_run.projection import Measured, machines_in, projection
from mlm.model.encoder import EncoderConfig
from tests.tokenizer.published import published
from tests.tokenizer.samples import prose


def numbers(lines: list[str]) -> list[float]:
    return [float(line[40:].split()[0].strip("%").replace(",", "")) for line in lines if line[0] == " "]


def test_the_projection_is_the_arithmetic_of_its_rates() -> None:
    # 7 of 8 bytes a parameter are sent at 450e9 a second; each of 8 GPUs computes for three times as long
    sending = 7 * 2**20 / 450e9
    step_tokens = 1e6
    one = Measured(2**20, 8 * 989e12 * 0.3 * 3 * sending / step_tokens, step_tokens, 4.0, 3.0, 5.0, 1e13, 2**20, 1e7)
    lines = projection(one, 2.0**40, machines_in("8xH100"))
    assert "not measured" in lines[0]
    text, shards, rows, encoding, here, replicated, sharded, sent, share, hours, readers = numbers(lines)
    assert (text, shards, rows) == (4 * 1024, 3 * 1024, 5 * 1024)
    assert encoding == pytest.approx(4 * 2**20 / 3600, abs=0.1)
    assert here == pytest.approx(2**40 * one.flops_per_token / (0.3 * 1e13) / 3600, abs=0.1)
    assert (replicated, sharded, sent, share) == (16, 2, 7, 25)
    assert hours == pytest.approx(2**40 / step_tokens * 4 * sending / 3600, abs=0.1)
    assert readers == pytest.approx(step_tokens / (4 * sending) / 1e7, abs=0.1)


def test_between_nodes_gradients_take_longer_and_computing_less() -> None:
    one = Measured(10**9, 6e9, 4e6, 4.0, 3.0, 5.0, 1e13, 1e7, 1e7)
    lines = projection(one, 1e12, machines_in(" 8xH100,64xh100 "))
    near, far = (numbers(lines[start:])[:5] for start in (7, 14))
    computing, sending = 6e9 * 4e6 / 64 / (989e12 * 0.3), 8e9 * 63 / 64 / 50e9
    assert far[3] == pytest.approx(100 * sending / (computing + sending), abs=0.1)
    assert far[4] == pytest.approx(1e12 / 4e6 * (computing + sending) / 3600, abs=0.1)
    assert far[4] < near[4]


@pytest.mark.parametrize("listed", ["", "8", "H100", "0xH100", "8xH100,", "8 x H100", "-1xH100", "8xH1000"])
def test_machines_that_are_not_known_are_one_line(listed: str) -> None:
    with pytest.raises(UserError, match=r"^--machines: .*H100") as caught:
        machines_in(listed)
    assert "\n" not in str(caught.value)


def test_every_thread_has_gradients_and_activations_of_its_own() -> None:
    encoder = EncoderConfig(width=24, heads=2, feedforward_width=40, layers=3)
    one, three = (dry_run.estimate_memory(encoder, 1000, 64, 16, 500, 2, threads) for threads in (1, 3))
    # a weight, two moments and, of each thread, a gradient of 4 bytes and a copy in bfloat16
    assert (one.pop("weights and optimizer"), three.pop("weights and optimizer")) == (1000 * 18, 1000 * 30)
    assert three == {part: 3 * number for part, number in one.items()}


@pytest.mark.parametrize("name", ["bert", "modernbert", "xlm_roberta"])
def test_tokens_one_after_the_other_read_as_the_text_that_they_are_decoded_to(name: str) -> None:
    tokenizer = published(name)
    for line in prose(30):
        ids = tokenizer.encode(line, add_special_tokens=False).ids
        pieces = [
            dry_run.added_text(tokenizer, ids[max(place - 1, 0) : place], ids[place]) for place in range(len(ids))
        ]
        assert "".join(pieces) == tokenizer.decode(ids)
