"""Dropout whose random numbers are a function of a key (Srivastava et al. 2014).

On CPU each thread draws from a stream of its own: torch's dropout is slower, and has one source for all threads.
Elsewhere, and in compiled layers, one thread computes, and torch's kernels draw from that source.
"""

import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # values of an element's random number; the probability is rounded to a multiple of their inverse


class _Stream(threading.local):
    """The random numbers of this thread; before `seed_dropout`, those of torch's seed."""

    def __init__(self) -> None:
        self.numbers = np.random.Generator(np.random.SFC64(torch.initial_seed()))


_stream = _Stream()


def seed_dropout(*key: int) -> None:
    """Make the random numbers that this thread draws a function of `key` and of the draws since, in their order."""
    sequence = np.random.SeedSequence(key)
    _stream.numbers = np.random.Generator(np.random.SFC64(sequence))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def drop(states: Tensor, probability: float) -> Tensor:
    """Set elements to zero with a probability, and scale the others so that the mean stays."""
    if probability == 0:
        return states
    if states.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(states, probability)
    dropped = min(round(probability * LEVELS), LEVELS - 1)
    words = _stream.numbers.integers(0, 2**64, -(-states.numel() // 4), dtype=np.uint64)
    kept = words.view(np.uint16)[: states.numel()] >= dropped
    factors = torch.from_numpy(kept.view(np.int8)).view(states.shape).to(states.dtype)
    return states * factors.mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Dropout):
    """`drop` in training, and nothing in evaluation."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the states with some elements dropped."""
        return drop(input, self.p) if self.training else input
