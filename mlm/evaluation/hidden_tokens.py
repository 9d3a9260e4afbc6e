"""The probability of hidden tokens: copies of texts in which some tokens are masks, and one of them is asked for."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlm.data.batches import Batch
from mlm.distributed.threads import replicate_on_threads, threads_for
from mlm.distributed.world import World
from mlm.objectives.masked import compute_logits

ROW_TOKENS, BATCH_TOKENS, BATCH_TOKENS_ON_DEVICE = 64, 2048, 32768
"""Tokens of a row that several copies share, and of a batch, if a copy is not longer. Few on CPU, for its cache."""


class Copy(NamedTuple):
    """A text of which the tokens from `first` to before `end` are hidden, and the first of them is asked for."""

    ids: Sequence[int]
    """All tokens, special ones too."""
    first: int
    end: int


@torch.no_grad()
def log_probabilities(model: nn.Module, copies: Sequence[Copy], mask_id: int, world: World) -> Tensor:
    """Return the log-probability in nats of the token that each copy asks for, (N,), float64.

    Copies of one length lie side by side in a row, each a segment of its own, so that none is padded.
    """
    found_N = torch.empty(len(copies), dtype=torch.float64)

    def compute(replica: nn.Module, _: int, part: tuple[list[int], int]) -> None:
        numbers, per_row = part
        batch = _batch([copies[number] for number in numbers], per_row, mask_id).to(world.device)
        with torch.no_grad():  # it holds for one thread
            logits_MV = compute_logits(replica, batch, world).float()
            losses_M = F.cross_entropy(logits_MV, batch.labels_BM.flatten(), reduction="none")
        found_N[numbers] = -losses_M[: len(numbers)].double().cpu()

    batch_tokens = BATCH_TOKENS if world.device.type == "cpu" else BATCH_TOKENS_ON_DEVICE
    parts = list(_parts(copies, batch_tokens))
    with _kernels(world), replicate_on_threads(model, world, threads_for(world, len(parts), batch_tokens)) as replicas:
        replicas.run_micro_batches(compute, parts)
    return found_N


def _kernels(world: World) -> AbstractContextManager[None]:
    """Return a context without cuDNN's attention, which plans each of the many shapes anew."""
    if world.device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _parts(copies: Sequence[Copy], batch_tokens: int) -> Iterator[tuple[list[int], int]]:
    """Yield the numbers of copies of one length that make a batch, and how many of them share a row."""
    by_length = sorted(range(len(copies)), key=lambda number: len(copies[number].ids))
    for length, same in itertools.groupby(by_length, lambda number: len(copies[number].ids)):
        per_row = max(ROW_TOKENS // length, 1)
        per_batch = per_row * max(batch_tokens // (per_row * length), 1)
        numbers = list(same)
        yield from ((numbers[start : start + per_batch], per_row) for start in range(0, len(numbers), per_batch))


def _batch(copies: Sequence[Copy], per_row: int, mask_id: int) -> Batch:
    """Return copies of the same length in rows; the last one is repeated where it takes that to fill a row."""
    rows = -(-len(copies) // per_row)
    copies = [*copies, *[copies[-1]] * (rows * per_row - len(copies))]
    ids_NL = np.array([copy.ids for copy in copies], dtype=np.int64)
    first_N, end_N = (np.array(ends)[:, None] for ends in zip(*((one.first, one.end) for one in copies), strict=True))
    places_L = np.arange(ids_NL.shape[1])
    seen_NL = np.where((first_N <= places_L) & (places_L < end_N), mask_id, ids_NL)
    starts_M = len(places_L) * np.arange(per_row)
    return Batch(
        torch.from_numpy(seen_NL).view(rows, -1),
        torch.arange(1, per_row + 1, dtype=torch.int32).repeat_interleave(len(places_L)).expand(rows, -1).contiguous(),
        torch.arange(len(places_L)).repeat(rows, per_row),
        torch.from_numpy(first_N.reshape(rows, per_row) + starts_M),
        torch.from_numpy(np.take_along_axis(ids_NL, first_N, axis=1).reshape(rows, per_row)),
        targets=len(copies),
        tokens=seen_NL.size,
    )
