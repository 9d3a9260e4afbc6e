"""Project the cost of training on many tokens on stated machines, from rates measured on this one and data sheets."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from timeit import Timer

import numpy as np

from configs import UserError
from mlm.build import PretrainComponents
from tokenizer.cached_encoder import CachedEncoder

ASSUMED_PEAK_SHARE = 0.3
STATE_BYTES = 16
"""Bytes a parameter of weight, gradient and Adam's two moments in float32: on every GPU, or divided among them."""
NODE_GPUS, NODE_BANDWIDTH = 8, 50e9
"""GPUs that are joined by NVLink, and the bytes that each sends beyond them in a second: a port of 400 Gbit/s each."""
SAMPLE_TOKENS = 500_000


@dataclass(frozen=True)
class Accelerator:
    """A device by its maker's data sheet."""

    peak_flops: float
    """Dense operations in bfloat16, a second."""
    bandwidth: float
    """Bytes that it sends to its neighbors in a second: half of NVLink's, which is given in both directions."""
    memory_gib: float


ACCELERATORS = {
    "A100": Accelerator(312e12, 300e9, 80),
    "H100": Accelerator(989e12, 450e9, 80),
    "H200": Accelerator(989e12, 450e9, 141),
    "B200": Accelerator(2250e12, 900e9, 180),
}
"""Data sheets of NVIDIA, the versions with NVLink."""


@dataclass(frozen=True)
class Measured:
    """The costs of a token, and the rates of this machine."""

    parameters: int
    flops_per_token: float
    tokens_per_step: float
    text_bytes_per_token: float
    shard_bytes_per_token: float
    row_bytes_per_token: float
    peak_flops: float
    """Matrix products of this machine, operations a second."""
    encoded_bytes_per_second: float
    """UTF-8 bytes of text, on one core."""
    assembled_tokens_per_second: float
    """Tokens in rows that are read and masked, on one core."""


def machines_in(text: str) -> list[tuple[int, str]]:
    """Return number and kind of the devices in a list such as '8xH100, 64xH100'; a wrong one is a UserError."""
    found = []
    for name in text.split(","):
        match = re.fullmatch(r"\s*([1-9][0-9]{0,6})x([A-Za-z0-9]+)\s*", name)
        if match is None or match[2].upper() not in ACCELERATORS:
            raise UserError(
                f"--machines: {name.strip()!r} names no devices, as 8xH100 does; known: {', '.join(ACCELERATORS)}"
            )
        found.append((int(match[1]), match[2].upper()))
    return found


def measure(made: PretrainComponents, flops_per_token: float, peak_flops: float) -> Measured:
    """Measure the bytes of a token in the corpus, and the rates of encoding it and of reading its rows."""
    corpus, train = made.corpus, made.corpus.train
    counts, shards = corpus.manifest.train, corpus.shards[0].train
    sentences = int(np.searchsorted(shards.sentences, SAMPLE_TOKENS, side="right"))
    borders = shards.sentences[: max(sentences, 2)].tolist()
    ids = shards.tokens[: borders[-1]].tolist()
    texts = [corpus.tokenizer.decode(ids[start:end]) for start, end in pairwise(borders)]
    encoder, known, new = CachedEncoder(corpus.tokenizer), texts[: len(texts) // 2], texts[len(texts) // 2 :]
    encoder.encode(known)  # its table of chunks then knows the frequent ones, as in a long text
    began = time.perf_counter()
    encoder.encode(new)
    encoded_bytes_per_second = sum(len(text.encode()) for text in new) / (time.perf_counter() - began)
    rows_B = np.arange(min(len(train), made.task.batch_rows))
    masking, epochs_B = made.config.masking, np.zeros_like(rows_B)
    times, seconds = Timer(lambda: train.masked(rows_B, epochs_B, masking, masking.rate, 0)).autorange()
    tokens = train.tokens_per_row
    offsets = 8 * (counts.sentences + counts.documents) / counts.tokens
    return Measured(
        parameters=sum(parameter.numel() for parameter in made.model.parameters()),
        flops_per_token=flops_per_token,
        tokens_per_step=made.step_size.tokens,
        text_bytes_per_token=counts.text_bytes / counts.tokens,
        shard_bytes_per_token=shards.tokens.dtype.itemsize + shards.word_starts.dtype.itemsize + offsets,
        row_bytes_per_token=(train.files[0].records.dtype.itemsize + 8 * float(train.segments_per_row.sum())) / tokens,
        peak_flops=peak_flops,
        encoded_bytes_per_second=encoded_bytes_per_second,
        assembled_tokens_per_second=times * len(rows_B) * tokens / seconds,
    )


def projection(one: Measured, tokens: float, machines: Sequence[tuple[int, str]]) -> list[str]:
    """Return lines on data, memory, time and network of training on so many tokens, calculated and not measured."""
    encoding = tokens * one.text_bytes_per_token / one.encoded_bytes_per_second
    lines = [
        f"projection, not measured: {tokens:.3g} tokens, from rates measured on this machine",
        f"  {'text':38}{tokens * one.text_bytes_per_token / 2**30:>10,.1f} GiB",
        f"  {'shards on disk':38}{tokens * one.shard_bytes_per_token / 2**30:>10,.1f} GiB",
        f"  {'rows on disk':38}{tokens * one.row_bytes_per_token / 2**30:>10,.1f} GiB",
        f"  {f'tokenizing, at {one.encoded_bytes_per_second / 1e6:.1f} MB/s':38}{encoding / 3600:>10,.1f} core hours",
    ]
    here = tokens * one.flops_per_token / (one.peak_flops * ASSUMED_PEAK_SHARE)
    share = f"{ASSUMED_PEAK_SHARE:.0%}"
    lines.append(f"  {f'training on it, at {share} of its peak':38}{here / 3600:>10,.1f} hours")
    for number, kind in machines:
        lines += _on(one, tokens, number, kind)
    return lines


def _on(one: Measured, tokens: float, number: int, kind: str) -> list[str]:
    # Replicated: a ring sums float32 gradients (reduce-scatter and all-gather of 4 bytes each). Sharded: bfloat16
    # weights are gathered for the forward and for the backward pass (2 + 2), and float32 gradients scattered (4).
    device, sent = ACCELERATORS[kind], 8 * one.parameters * (number - 1) / number
    within = number <= NODE_GPUS
    computing = one.flops_per_token * one.tokens_per_step / number / (device.peak_flops * ASSUMED_PEAK_SHARE)
    sending = sent / (device.bandwidth if within else NODE_BANDWIDTH)
    step, state = computing + sending, STATE_BYTES * one.parameters / 2**20
    readers = one.tokens_per_step / step / one.assembled_tokens_per_second
    joined = "NVLink" if within else f"{NODE_BANDWIDTH / 1e9:g} GB/s each between nodes of {NODE_GPUS}"
    return [
        f"projected for {number} {kind} with {joined}, at {ASSUMED_PEAK_SHARE:.0%} of their peak",
        f"  {'state on each GPU, replicated':38}{state:>10,.0f} MiB of {device.memory_gib:g} GiB",
        f"  {'state on each GPU, sharded':38}{state / number:>10,.0f} MiB",
        f"  {'sent by each GPU in a step':38}{sent / 2**20:>10,.0f} MiB",
        f"  {'share of a step, without overlap':38}{sending / step:>14.1%}",
        f"  {'hours, without overlap':38}{tokens / one.tokens_per_step * step / 3600:>14,.1f}",
        f"  {'cores that keep up with reading rows':38}{readers:>14,.1f}",
    ]
