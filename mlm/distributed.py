"""What training knows about ranks and devices; on one process everything here is a no-op or a constant."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from configs import UserError

Precision = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True)
class World:
    """The processes that train one model together."""

    device: torch.device
    """The device that this process computes on."""
    dtype: torch.dtype
    """What matrix products are computed in: bfloat16 under autocast, or float32."""
    rank: int = 0
    """Number of this process."""
    size: int = 1
    """Number of processes."""

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which matrix products are computed in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def sum(self, count: int) -> int:
        """Return the sum of `count` over all ranks."""
        return count

    def wait(self) -> None:
        """Return when the device has done all that it was given, so that a clock may be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def synchronise_gradients(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Return a context whose backward pass sums gradients over ranks only if it is the `last` of a step."""
        return nullcontext()

    def seed_dropout(self, seed: int, step: int, micro_batch: int) -> None:
        """Make the random numbers of a micro-batch a function of seed, step, micro-batch and rank."""
        torch.manual_seed(hash((seed, step, micro_batch, self.rank)))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def find_world(precision: Precision) -> World:
    """Find the device and the precision that suits it.

    Raises:
        UserError: bfloat16 was asked for on a device without it.

    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fast = has_fast_bfloat16(device)
    if precision == "bfloat16" and not fast:
        raise UserError(f"this {device.type} has no bfloat16 matrix products: set train.precision to auto or float32")
    return World(device, torch.bfloat16 if fast and precision != "float32" else torch.float32)
