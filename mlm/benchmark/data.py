"""The cases of the data path: building shards and making batches.

This module does not import torch by itself, because shards are built and their memory measured in processes without it.
"""

import itertools
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.files import temporary
from mlm.benchmark import hf_trainer
from mlm.benchmark.measure import Case, alternate, in_fresh_process, peak_bytes, times_a_second

if TYPE_CHECKING:
    from mlm.benchmark.speed import Bench

COLLATED_BATCHES = 8
COPIES = (1, 4, 16)
"""Numbers of copies of the text that shards are built from."""


def assemble_and_mask(bench: "Bench", name: str) -> list[Case]:
    """Make batches on one thread, beside the collator, which has the same rows as lists in memory."""
    import torch

    rows, recipe = bench.corpus.train, bench.recipe
    numbers = [rows.order.rows(recipe.train.seed, step, recipe.train.batch_rows) for step in range(COLLATED_BATCHES)]
    wholes = [rows.assemble(rows_B) for rows_B, _ in numbers]
    lists = [hf_trainer.examples(map(np.trim_zeros, whole.ids_BL)) for whole in wholes]  # 0 is padding
    collate, masking = hf_trainer.collator(bench.corpus.tokenizer_path), recipe.masking
    tokens = sum(np.count_nonzero(whole.segments_BL) for whole in wholes) / COLLATED_BATCHES
    batches = itertools.cycle(range(COLLATED_BATCHES))

    def make() -> object:
        return rows.masked(*numbers[next(batches)], masking, masking.mean_rate, recipe.train.seed)

    def rate(call: Callable[[], object]) -> float:
        return tokens * times_a_second(call, bench.scale.seconds / 2)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        theirs = partial(rate, lambda: collate(lists[next(batches)]))
        rates = alternate(partial(rate, make), theirs, bench.scale.repeats)
    finally:
        torch.set_num_threads(threads)
    counted = f"tokens without padding, in batches of {recipe.train.batch_rows} rows, on one thread"
    return [Case.of(name, "tokens/s", counted, *rates)]


def build_shards(bench: "Bench", name: str) -> list[Case]:
    """Tokenize one, four and sixteen copies of a text, beside datasets.map: speed and memory."""
    from tokenizer.shards.workers import default_workers

    cases: list[Case] = []
    with temporary(), tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"

        def measured(build: Callable[[Path, Path, Path], tuple[float, int]]) -> tuple[float, float]:
            with tempfile.TemporaryDirectory(dir=folder) as output:
                arguments = build, text, bench.corpus.tokenizer_path, Path(output)
                (seconds, workers), own = in_fresh_process(*arguments)
            return text.stat().st_size / 1e6 / seconds, (own + workers) / 2**20

        for copies in COPIES:
            write_sentences(bench, text, copies)
            turns = alternate(
                partial(measured, build_ours), partial(measured, hf_trainer.map_text), bench.scale.repeats
            )
            speeds, sizes = ([[turn[quantity] for turn in side] for side in turns] for quantity in (0, 1))
            label = "" if copies == 1 else f"-{copies}x"
            about = f"{text.stat().st_size / 1e6:.1f} MB of text; ours with {default_workers()} worker processes"
            speed = f"from the start of the work to its end, but theirs has read the text before: {about}"
            memory = f"largest resident memory, of all processes together: {about}"
            cases.append(Case.of(f"{name}{label}", "MB/s", speed, *speeds))
            cases.append(Case.of(f"{name}/memory{label}", "MiB", memory, *sizes))
    return cases


def build_ours(text: Path, tokenizer_path: Path, folder: Path) -> tuple[float, int]:
    """Build the shards of a text file; return the seconds, and an upper bound of the workers' memory in bytes."""
    from tokenizer import vocabulary
    from tokenizer.cleaning import TextConfig
    from tokenizer.shards.build import build
    from tokenizer.shards.workers import default_workers
    from tokenizer.sources import Files

    tokenizer = vocabulary.load(tokenizer_path)
    began = time.perf_counter()
    build(TextConfig(source=Files(paths=(str(text),))), tokenizer, folder / "shards")
    return time.perf_counter() - began, default_workers() * peak_bytes(resource.RUSAGE_CHILDREN)


def write_sentences(bench: "Bench", path: Path, copies: int) -> None:
    """Write the training sentences, one a line, in numbered copies that are no duplicates."""
    split = bench.corpus.shards[0].train
    bounds = itertools.pairwise(split.sentences[: bench.scale.sentences + 1].tolist())
    sentences = bench.corpus.tokenizer.decode_batch([split.tokens[start:end].tolist() for start, end in bounds])
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            file.writelines(f"{sentence} {copy}\n" for sentence in sentences)
