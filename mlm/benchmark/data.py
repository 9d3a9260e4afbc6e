"""The cases of the benchmark about batches: how fast they are made, and what training waits for them."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mlm.benchmark import hf_trainer
from mlm.benchmark.measure import Case, alternate
from mlm.benchmark.speed import NEVER, Bench, MeterObserver, rows_of_as_many_tokens, train_ours

COLLATED_BATCHES = 8


def data_wait(bench: Bench, name: str) -> list[Case]:
    """Train, and measure the share of the time that goes into batches; theirs: into the Trainer's collator."""

    def ours() -> float:
        observer = MeterObserver(bench.meter())
        train_ours(bench.recipe, bench.world, observer, NEVER, lambda: observer.meter.finished)
        return 100 * observer.waited_seconds / observer.seconds

    def theirs() -> float:
        return hf_trainer.as_users_run_it(their_wait, bench.anew())

    counted = "share of training that waits for batches, made in its process; theirs: of sentences, collating alone"
    return [Case.of(name, "% of time", counted, *alternate(ours, theirs, bench.scale.repeats))]


def their_wait(bench: Bench) -> float:
    """Train the Trainer's way, a sentence a row; return the share of a step that is collating, in %."""
    import torch

    from mlm.benchmark.hf_models import bert

    recipe, corpus, meter = bench.recipe, bench.corpus, bench.meter()
    rows = hf_trainer.sentences(corpus.train.split, recipe.data.row_length)
    collate, waits, ends = hf_trainer.collator(corpus.tokenizer_path), [], []

    def timed(examples: list[Any]) -> dict[str, Any]:
        began = time.perf_counter()
        batch = collate(examples)
        waits.append(time.perf_counter() - began)
        return batch

    def after_step(tokens: int) -> bool:
        ends.append(time.perf_counter())
        return meter.after_step(tokens)

    torch.manual_seed(recipe.train.seed)
    model = bert(recipe.model.encoder, corpus.manifest.vocabulary_size, recipe.data.row_length)
    batch_rows = rows_of_as_many_tokens(bench, rows)
    hf_trainer.train(model, hf_trainer.dataset(rows), timed, batch_rows, bfloat16=False, after_step=after_step)
    return 100 * statistics.mean(waits) / ((ends[-1] - ends[0]) / (len(ends) - 1))


def assemble_and_mask(bench: Bench, name: str) -> list[Case]:
    """Make batches, against the collator on the same rows, which it is given as lists in memory; one thread."""
    import torch

    rows, recipe = bench.corpus.train, bench.recipe
    numbers = [rows.step_rows(recipe.train.seed, step, recipe.train.batch_rows) for step in range(COLLATED_BATCHES)]
    wholes = [rows.assemble(rows_B) for rows_B, _ in numbers]
    lists = [hf_trainer.examples(map(np.trim_zeros, whole.ids_BL)) for whole in wholes]  # 0 is padding
    collate = hf_trainer.collator(bench.corpus.tokenizer_path)
    tokens = sum(np.count_nonzero(whole.segments_BL) for whole in wholes) / COLLATED_BATCHES

    def ours() -> float:
        def make(batch: int) -> object:
            return rows.masked(*numbers[batch], recipe.masking, recipe.masking.rate, recipe.train.seed)

        return tokens * _times_a_second(make, bench.scale.seconds / 2)

    def theirs() -> float:
        return tokens * _times_a_second(lambda batch: collate(lists[batch]), bench.scale.seconds / 2)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = alternate(ours, theirs, bench.scale.repeats)
    finally:
        torch.set_num_threads(threads)
    counted = f"tokens that are not padding, in batches of {recipe.train.batch_rows} rows, on one thread"
    return [Case.of(name, "tokens/s", counted, *rates)]


def _times_a_second(make: Callable[[int], object], seconds: float) -> float:
    make(0)
    count, began, elapsed = 0, time.perf_counter(), 0.0
    while elapsed < seconds:
        make(count % COLLATED_BATCHES)
        count, elapsed = count + 1, time.perf_counter() - began
    return count / elapsed
