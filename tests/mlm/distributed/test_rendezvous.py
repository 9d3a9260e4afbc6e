"""Parting: not before gloo has let go of what it was given."""

import threading
import time
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


def test_a_process_leaves_when_nobody_outside_python_holds_what_it_sent(group: None) -> None:
    sent = torch.ones(3)
    rendezvous.reduce(sent, dist.ReduceOp.SUM)
    holders = [sent * torch.ones(3, requires_grad=True)]  # autograd's graph holds what its backward pass will need
    held_until = []

    def let_go() -> None:
        time.sleep(0.3)
        held_until.append(time.monotonic())
        holders.clear()

    thread = threading.Thread(target=let_go)
    thread.start()
    rendezvous.leave()
    left = time.monotonic()
    thread.join()
    assert held_until[0] <= left < held_until[0] + rendezvous.RELEASE_SECONDS / 2
    assert not dist.is_initialized()


def test_a_process_that_lost_another_does_not_wait(group: None) -> None:
    sent = torch.ones(3)
    holder = sent * torch.ones(3, requires_grad=True)
    assert holder.requires_grad
    with pytest.raises(RuntimeError):
        rendezvous.reduce(sent, dist.ReduceOp.BAND)  # not of floats: one that fails
    began = time.monotonic()
    rendezvous.leave()
    assert time.monotonic() - began < rendezvous.RELEASE_SECONDS / 2
