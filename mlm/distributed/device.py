"""The device of a run: the precision of its matrix products, autocast, and the rate at which it multiplies."""

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal

import torch

from configs import UserError
from mlm.distributed.world import World

ComputePrecision = Literal["bfloat16", "float32"]
Precision = Literal["auto", "bfloat16", "float32"]

PRODUCTS_ON_DEVICE = 20
"""Products between two synchronizations, so that the latency of the device does not count."""
PROBED, PROBES, PROBE_SECONDS = (512, 256, 256), 3, 0.01
"""Tokens, width and feed-forward width at which precisions are compared, in turns; small, so that some of the products
are undisturbed on a busy machine."""
FLOAT32_MIN_SPEEDUP = 1.2
"""Use float32 only if it is at least this many times as fast: bfloat16 also halves memory traffic, which the comparison
does not see."""

logger = logging.getLogger(__name__)


def precision_of(dtype: torch.dtype) -> ComputePrecision:
    """Return the name of the precision of a type: bfloat16, or float32 for every type as wide or wider."""
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def with_precision(world: World, wanted: Precision) -> World:
    """Return `world` in a precision, `auto` in the faster on rank 0; raise a UserError if the device lacks bfloat16."""
    name: str = wanted
    if wanted == "bfloat16" and not has_bfloat16(world.device):
        kind = world.device.type
        raise UserError(f"this {kind} has no bfloat16 matrix products: set train.precision to auto or float32")
    if wanted == "auto":
        name = world.from_main("measuring which precision is faster", lambda: fastest(world.device))
    return replace(world, dtype=getattr(torch, name))


def with_recorded_precision(world: World, recorded: ComputePrecision) -> World:
    """Return `world` in the precision that a run began in; in float32, with a warning, where rank 0 lacks bfloat16."""

    def choose() -> str:
        if recorded == "float32" or has_bfloat16(world.device):
            return recorded
        logger.warning(
            "this %s has no bfloat16 matrix products, which the run began in: computing in float32, which rounds less",
            world.device.type,
        )
        return "float32"

    name = world.from_main("looking for the precision that the run began in", choose)
    return replace(world, dtype=getattr(torch, name))


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return a context in which matrix products are computed in `dtype`."""
    if dtype.itemsize >= torch.float32.itemsize:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def autocast_dtype(device: torch.device, otherwise: torch.dtype) -> torch.dtype:
    """Return the type in which autocast computes matrix products where it is on, else `otherwise`."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else otherwise


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fastest(device: torch.device) -> ComputePrecision:
    """Return the precision in which the device multiplies matrices faster.

    GPUs with bfloat16 are faster in it. Processors with bfloat16 are measured: some do twice as many operations in it
    as in float32, and some half as many.
    """
    if not has_bfloat16(device):
        return "float32"
    if device.type == "cuda":
        return "bfloat16"
    rates, cores = dict.fromkeys((torch.bfloat16, torch.float32), 0.0), torch.get_num_threads()
    torch.set_num_threads(1)  # several threads on a busy machine would wait for each other
    try:
        for _ in range(PROBES):
            for dtype, rate in rates.items():
                rates[dtype] = max(rate, measure_peak(device, dtype, *PROBED, seconds=PROBE_SECONDS))
    finally:
        torch.set_num_threads(cores)
    return "float32" if rates[torch.float32] > FLOAT32_MIN_SPEEDUP * rates[torch.bfloat16] else "bfloat16"


def measure_peak(
    device: torch.device, dtype: torch.dtype, tokens: int, width: int, feedforward_width: int, seconds: float = 0.1
) -> float:
    """Measure for about `seconds` the rate of matrix products of a feed-forward layer's shapes, in FLOP/s."""
    left = torch.randn(tokens, width, device=device).to(dtype)
    right = torch.randn(width, feedforward_width, device=device).to(dtype)
    products = 1 if device.type == "cpu" else PRODUCTS_ON_DEVICE

    def once() -> float:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(products):
            _ = left @ right
        synchronize(device)
        return (time.perf_counter() - began) / products

    once()  # the first call selects a kernel
    until, least = time.perf_counter() + seconds, once()
    while time.perf_counter() < until:
        least = min(least, once())
    return 2 * tokens * width * feedforward_width / least


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all queued work, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
