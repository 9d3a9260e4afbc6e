"""Leaving a process group: not before gloo has released the reduced tensors."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mlm.distributed import rendezvous


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_a_process_leaves_once_nothing_outside_python_holds_a_reduced_tensor(group: None) -> None:
    sent, pauses = torch.ones(3), list[float]()
    rendezvous.reduce(sent, dist.ReduceOp.SUM)
    holders = [sent * torch.ones(3, requires_grad=True)]  # autograd's graph holds the tensor for its backward pass

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        assert dist.is_initialized()
        if len(pauses) == 3:
            holders.clear()

    rendezvous.leave(pause)
    assert not holders
    assert not dist.is_initialized()


def test_a_process_does_not_wait_after_a_failed_reduction(group: None) -> None:
    sent, pauses = torch.ones(3), list[float]()
    holder = sent * torch.ones(3, requires_grad=True)
    assert holder.requires_grad
    with pytest.raises(RuntimeError):
        rendezvous.reduce(sent, dist.ReduceOp.BAND)  # fails: not defined for floats
    rendezvous.leave(pauses.append)
    assert pauses == []
    assert not dist.is_initialized()
