"""What matrix products are computed in, and how fast the machine computes them."""

import time
from typing import Literal

import torch

ComputePrecision = Literal["bfloat16", "float32"]
Precision = Literal["auto", "bfloat16", "float32"]

PEAK_SECONDS = 0.1
PRODUCTS_ON_DEVICE = 20
"""Products that are waited for at once, so that the way to the device and back does not count."""
PROBED, PROBES, PROBE_SECONDS = (512, 256, 256), 3, 0.01
"""Tokens, width and feed-forward width at which precisions are compared, in turns; small, so that some of the products
are undisturbed where others use the cores too."""
CLEARLY = 1.2
"""How many times as fast float32 must be to be taken: bfloat16 has half the bytes to move besides."""


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def of_autocast(device: torch.device, otherwise: torch.dtype) -> torch.dtype:
    """Return what autocast computes matrix products in where it is on, else `otherwise`."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else otherwise


def fastest(device: torch.device) -> ComputePrecision:
    """Return the precision in which the device multiplies matrices faster.

    A GPU that has bfloat16 is known to be faster in it. Processors that have it are asked by a product of each kind:
    some do twice as many operations in it as in float32, and some half as many.
    """
    if not has_bfloat16(device):
        return "float32"
    if device.type == "cuda":
        return "bfloat16"
    rates, cores = dict.fromkeys((torch.bfloat16, torch.float32), 0.0), torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other on a busy machine would measure the waiting
    try:
        for _ in range(PROBES):
            for dtype, rate in rates.items():
                rates[dtype] = max(rate, measure_peak(device, dtype, *PROBED, seconds=PROBE_SECONDS))
    finally:
        torch.set_num_threads(cores)
    return "float32" if rates[torch.float32] > CLEARLY * rates[torch.bfloat16] else "bfloat16"


def measure_peak(
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    width: int,
    feedforward_width: int,
    seconds: float = PEAK_SECONDS,
) -> float:
    """Measure for about `seconds` the rate of matrix products of a feed-forward layer's shapes, in FLOP/s."""
    left = torch.randn(tokens, width, device=device).to(dtype)
    right = torch.randn(width, feedforward_width, device=device).to(dtype)
    products = 1 if device.type == "cpu" else PRODUCTS_ON_DEVICE

    def once() -> float:
        wait(device)
        began = time.perf_counter()
        for _ in range(products):
            _ = left @ right
        wait(device)
        return (time.perf_counter() - began) / products

    once()  # the first one finds its kernel
    until, least = time.perf_counter() + seconds, once()
    while time.perf_counter() < until:
        least = min(least, once())
    return 2 * tokens * width * feedforward_width / least


def wait(device: torch.device) -> None:
    """Return when the device has done all that it was given, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
