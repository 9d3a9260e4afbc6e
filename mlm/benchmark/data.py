"""The cases of the data path: building shards, making batches, and waiting for them in training.

This module does not import torch by itself, because shards are built and their memory measured in processes without it.
"""

import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlm.benchmark import hf_trainer
from mlm.benchmark.measure import Case, Meter, alternate, in_fresh_process, largest_child_bytes, times_a_second

if TYPE_CHECKING:
    from mlm.benchmark.speed import Bench

COLLATED_BATCHES = 8
COPIES = (1, 4, 16)
"""Numbers of copies of the text that shards are built from."""


def data_wait(bench: "Bench", name: str) -> list[Case]:
    """Train, and measure the share of the time spent waiting for batches; theirs: the collator's share."""
    from mlm.benchmark.speed import measure_ours

    def ours() -> float:
        observer = measure_ours(bench)
        return 100 * observer.waited_seconds / observer.seconds

    def theirs() -> float:
        return hf_trainer.as_users_run_it(their_wait, bench)

    counted = "share of training spent on making batches; theirs: on collating alone, a sentence a row"
    return [Case.of(name, "% of time", counted, *alternate(ours, theirs, bench.scale.repeats))]


def their_wait(bench: "Bench") -> float:
    """Train BERT by the Trainer, a sentence a row; return the collator's share of a step in %."""
    from mlm.benchmark.speed import REFERENCES, rows_of_as_many_tokens

    reference, meter = REFERENCES["training/one-sentence-a-row"], Meter(bench.scale.seconds)
    collate, waits, ends = hf_trainer.collator(bench.corpus.tokenizer_path), list[float](), list[float]()

    def timed(examples: list[Any]) -> dict[str, Any]:
        began = time.perf_counter()
        batch = collate(examples)
        waits.append(time.perf_counter() - began)
        return batch

    def after_step(tokens: int) -> bool:
        ends.append(time.perf_counter())
        return meter.after_step(tokens)

    rows, model = reference.rows(bench), reference.build(bench, bench.recipe.train.seed)
    batch_rows, dataset = rows_of_as_many_tokens(bench, rows), hf_trainer.dataset(rows)
    hf_trainer.train(model, dataset, timed, batch_rows, bfloat16=False, after_step=after_step)
    return 100 * statistics.mean(waits) / ((ends[-1] - ends[0]) / (len(ends) - 1))


def assemble_and_mask(bench: "Bench", name: str) -> list[Case]:
    """Make batches on one thread, beside the collator, which has the same rows as lists in memory."""
    import torch

    rows, recipe = bench.corpus.train, bench.recipe
    numbers = [rows.step_rows(recipe.train.seed, step, recipe.train.batch_rows) for step in range(COLLATED_BATCHES)]
    wholes = [rows.assemble(rows_B) for rows_B, _ in numbers]
    lists = [hf_trainer.examples(map(np.trim_zeros, whole.ids_BL)) for whole in wholes]  # 0 is padding
    collate, masking = hf_trainer.collator(bench.corpus.tokenizer_path), recipe.masking
    tokens = sum(np.count_nonzero(whole.segments_BL) for whole in wholes) / COLLATED_BATCHES
    batches = itertools.cycle(range(COLLATED_BATCHES))

    def make() -> object:
        return rows.masked(*numbers[next(batches)], masking, masking.mean_rate, recipe.train.seed)

    def ours() -> float:
        return tokens * times_a_second(make, bench.scale.seconds / 2)

    def theirs() -> float:
        return tokens * times_a_second(lambda: collate(lists[next(batches)]), bench.scale.seconds / 2)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = alternate(ours, theirs, bench.scale.repeats)
    finally:
        torch.set_num_threads(threads)
    counted = f"tokens without padding, in batches of {recipe.train.batch_rows} rows, on one thread"
    return [Case.of(name, "tokens/s", counted, *rates)]


def build_shards(bench: "Bench", name: str) -> list[Case]:
    """Tokenise one, four and sixteen copies of a text, beside datasets.map: speed, memory, and their growth."""
    from tokenizer.shards.workers import default_workers

    tokenizer = bench.corpus.tokenizer_path
    cases: list[Case] = []
    seconds: list[tuple[list[float], list[float]]] = []
    sizes: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"

        def ours() -> tuple[float, float]:
            (seconds, workers), own = in_fresh_process(build_ours, text, tokenizer, Path(folder) / "shards")
            shutil.rmtree(Path(folder) / "shards")
            return seconds, (own + workers) / 2**20

        def theirs() -> tuple[float, float]:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                seconds, own = in_fresh_process(hf_trainer.map_text, text, tokenizer, Path(cache))
            return seconds, own / 2**20

        for copies in COPIES:
            sizes.append(_write_sentences(bench, text, copies) / 1e6)
            turns = alternate(ours, theirs, bench.scale.repeats)
            mine, others = ([taken for taken, _ in side] for side in turns)
            speeds = ([sizes[-1] / taken for taken in side] for side in (mine, others))
            seconds.append((mine, others))
            memory = ([held for _, held in side] for side in turns)
            label = "" if copies == 1 else f"-{copies}x"
            about = f"{sizes[-1]:.1f} MB of text; ours with {default_workers()} worker processes"
            speed = f"from the start of the work to its end, but theirs has read the text before: {about}"
            cases.append(Case.of(f"{name}{label}", "MB/s", speed, *speeds))
            held = f"largest resident memory, of all processes together: {about}"
            cases.append(Case.of(f"{name}/memory{label}", "MiB", held, *memory))
    grown = (
        [more / less for less, more in zip(*ends, strict=True)] for ends in zip(seconds[0], seconds[-1], strict=True)
    )
    counted = f"seconds for the most text divided by those for the least; {sizes[-1] / sizes[0]:.1f} times the text"
    return [*cases, Case.of(f"{name}/growth", "times", counted, *grown)]


def build_ours(text: Path, tokenizer_path: Path, output: Path) -> tuple[float, int]:
    """Build the shards of a text file; return the seconds, and an upper bound of the workers' memory in bytes."""
    from tokenizer import vocabulary
    from tokenizer.cleaning import TextConfig
    from tokenizer.shards.build import build
    from tokenizer.shards.workers import default_workers
    from tokenizer.sources import Files

    tokenizer = vocabulary.load(tokenizer_path)
    began = time.perf_counter()
    build(TextConfig(source=Files(paths=(str(text),))), tokenizer, output)
    return time.perf_counter() - began, default_workers() * largest_child_bytes()


def _write_sentences(bench: "Bench", path: Path, copies: int) -> int:
    """Write the training sentences, one a line, in numbered copies that are no duplicates; return the bytes."""
    split = bench.corpus.train.split
    bounds = itertools.pairwise(split.sentences[: bench.scale.sentences + 1].tolist())
    sentences = bench.corpus.tokenizer.decode_batch([split.tokens[start:end].tolist() for start, end in bounds])
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            file.writelines(f"{sentence} {copy}\n" for sentence in sentences)
    return path.stat().st_size
