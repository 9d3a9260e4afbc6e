from pathlib import Path

import pytest
import torch

from configs import UserError
from mlm.checkpoint.weights import host_state_dict, load_into
from tests.mlm.samples import model_of

BIAS = "output_bias"


def test_missing_and_surplus_weights_are_told_by_name() -> None:
    model = model_of()
    whole = host_state_dict(model_of(seed=1))
    lacking = {name: tensor for name, tensor in whole.items() if name != BIAS}
    for tensors, pattern in (
        (lacking, f"lack 1 .*{BIAS}"),
        ({}, f"lack {len(whole)} .*encoder"),
        (whole | {"more": torch.zeros(2)}, "have 1 .*more"),
        (whole | {BIAS: torch.zeros(2)}, BIAS),
    ):
        with pytest.raises(UserError, match=rf"a/folder do not fit.*{pattern}"):
            load_into(model, tensors, Path("a/folder"))
    load_into(model, whole, Path("a/folder"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in host_state_dict(model).items())
