"""The estimates of memory and communication in the preview."""

import pytest

from mlm import dry_run
from mlm.model.encoder import EncoderConfig
from tests.tokenizer.published import published
from tests.tokenizer.samples import prose


def test_communication_is_bytes_over_bandwidth_beside_computing() -> None:
    # 7 of 8 bytes a parameter are sent at 450e9 a second; each of 8 GPUs computes for three times as long
    sending = 7 * 2**20 / 450e9
    lines = dry_run.projection(2**20, flops_per_step=8 * 989e12 * 0.3 * 3 * sending)
    assert [line.split()[-2:] for line in lines[1:-1]] == [["16", "MiB"], ["2", "MiB"], ["7", "MiB"]]
    assert lines[-1].endswith(" 25.0%")


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
