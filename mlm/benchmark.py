"""Measure training, the data path and start-up beside what people use today: in turn, on one text and machine.

Both sides train the same model, BERT of 4 layers of width 256 without dropout, on the same sentences in the same
tokens, about as many of them a step. Ours is the shipped loop, with packed rows and in bfloat16 where the hardware
has it; theirs is `mlm.competition`.
"""

import argparse
import difflib
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs import UserError, read
from mlm import competition
from mlm.comparison import Case, Meter, alternate, draw, table

if TYPE_CHECKING:
    from torch import nn

    from mlm.data import Corpus
    from mlm.distributed import World
    from mlm.loop import Interval, Position
    from mlm.optim import Optimiser
    from mlm.recipe import Recipe

RECIPE = (
    "name=benchmark",
    "data.row_length=128",
    "model.transform=true",
    "model.encoder.width=256",
    "model.encoder.heads=4",
    "model.encoder.feedforward_width=1024",
    "model.encoder.layers=4",
    "model.encoder.norm=post",
    "model.encoder.embedding_norm=true",
    "model.encoder.activation=gelu",
    "model.encoder.positions.kind=learned",
    "evaluation.most_rows=8",
    "evaluation.words=0",
)
"""What our side changes of the default recipe."""
NEVER = 1_000_000_000
COLLATED_BATCHES = 8
COPIES = 4
POLL_SECONDS = 0.005
TOKENS_COUNTED = "tokens that are not padding, over whole training steps after two of warm-up"


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    repeats: int
    seconds: float
    """How long a side trains or assembles each time, at least."""
    batch_rows: int
    sentences: int
    """Sentences that shards are built of, at the most."""


FULL = Scale(repeats=5, seconds=4.0, batch_rows=16, sentences=1_000_000)
QUICK = Scale(repeats=2, seconds=0.5, batch_rows=4, sentences=20_000)


@dataclass(frozen=True)
class Bench:
    """What all cases share; what is costly in it is made when a case first asks for it."""

    output: Path
    scale: Scale
    overrides: tuple[str, ...]
    """What our side changes of the default recipe, RECIPE and more."""

    @cached_property
    def recipe(self) -> "Recipe":
        """Our side's recipe."""
        from mlm.recipe import Recipe

        return read(Recipe, None, self.overrides)

    @cached_property
    def corpus(self) -> "Corpus":
        """The text in rows."""
        from mlm.data import open_corpus

        recipe = self.recipe
        return open_corpus(recipe.text, recipe.vocabulary, recipe.data.row_length, self.output / "cache")

    @cached_property
    def world(self) -> "World":
        """The device and its precision."""
        from mlm.distributed import find_world

        return find_world(self.recipe.train.precision)

    def meter(self) -> Meter:
        """Return a new meter of training speed."""
        import torch

        return Meter(self.scale.seconds, torch.cuda.synchronize if self.world.device.type == "cuda" else lambda: None)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    for name in options.cases:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1)
            raise UserError(f"no such case: {name}: " + (f"did you mean {near[0]}?" if near else ", ".join(CASES)))
    competition.check_installed()
    scale = QUICK if options.quick else FULL
    if options.repeats is not None:
        scale = replace(scale, repeats=options.repeats)
    text = ("text.source.kind=files", f"text.source.paths={json.dumps(options.text)}") if options.text else ()
    bench = Bench(options.output, scale, (*RECIPE, f"vocabulary.size={options.vocabulary}", *text))
    options.output.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []
    for name in options.cases or CASES:
        print(f"measuring {name}", file=sys.stderr)
        cases += CASES[name](bench, name)
        write(bench, cases)  # after each, so that Ctrl-C loses only what it interrupts
    print(table(cases))
    print(f"\nplot: {options.output / 'benchmark.png'}    all figures: {options.output / 'benchmark.json'}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mlm.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="case", help=f"what to measure (default: all): {', '.join(CASES)}")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/benchmark"),
        metavar="DIR",
        help="folder of results and cache (%(default)s)",
    )
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help=f"turns of each side ({FULL.repeats}; {QUICK.repeats} if quick)"
    )
    parser.add_argument("--quick", action="store_true", help="a look within a minute: small batches, short turns")
    parser.add_argument(
        "--text",
        action="append",
        metavar="FILE",
        help="text to use, file or pattern (the documentation of Python); repeatable",
    )
    parser.add_argument(
        "--vocabulary", type=_positive, default=8192, metavar="N", help="number of tokens (%(default)s)"
    )
    return parser.parse_intermixed_args(arguments)


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


def write(bench: Bench, cases: Sequence[Case]) -> None:
    """Write the JSON and the plot of what was measured so far."""
    from importlib import metadata

    from mlm import run

    about: dict[str, Any] = run.environment(bench.world.device)
    del about["git_diff"]
    about["versions"] |= {name: metadata.version(name) for name in competition.PACKAGES}
    manifest = bench.corpus.shards.manifest
    about |= {
        "precision": str(bench.world.dtype).removeprefix("torch."),
        "scale": asdict(bench.scale),
        "recipe": bench.recipe.model_dump(mode="json"),
        "training_tokens": manifest.train.tokens,
        "text_fingerprint": manifest.text_fingerprint,
        "cases": [asdict(case) for case in cases],
    }
    run.write_json(bench.output / "benchmark.json", about)
    draw(cases, bench.output / "benchmark.png")


def train_one_sentence_a_row(bench: Bench, name: str) -> list[Case]:
    """Compare with the Trainer on padded rows of one sentence each in float32."""
    rows = competition.sentences(bench.corpus.train.split, bench.recipe.data.row_length)
    return [_training(bench, name, rows, bfloat16=False)]


def train_concatenated(bench: Bench, name: str) -> list[Case]:
    """Compare with the Trainer on rows cut out of the concatenated text, in the precision of ours."""
    import torch

    rows = competition.chunks(bench.corpus.train.split, bench.recipe.data.row_length)
    return [_training(bench, name, rows, bfloat16=bench.world.dtype == torch.bfloat16)]


def _training(bench: Bench, name: str, rows: list[NDArray[np.int64]], *, bfloat16: bool) -> Case:
    import torch

    from mlm import cost

    recipe, ours, size = bench.recipe, bench.corpus.train, bench.corpus.shards.manifest.vocabulary_size
    encoder, batch_rows = recipe.model.encoder, bench.scale.batch_rows
    tokens_per_step = batch_rows * ours.tokens / len(ours)
    their_batch_rows = max(round(tokens_per_step * len(rows) / sum(map(len, rows))), 1)
    dataset, collate = competition.dataset(rows), competition.collator(bench.corpus.tokenizer_path)
    peaks: list[float] = []

    def measure_ours() -> float:
        slots = batch_rows * recipe.data.row_length
        peaks.append(cost.measure_peak(bench.world, slots, encoder.width, encoder.feedforward_width))
        return train_ours(bench)

    def measure_theirs() -> float:
        torch.manual_seed(recipe.train.seed)
        model, meter = competition.bert(encoder, size, recipe.data.row_length), bench.meter()
        competition.train(model, dataset, collate, their_batch_rows, bfloat16=bfloat16, after_step=meter.after_step)
        return meter.rate

    rates, their_rates = alternate(measure_ours, measure_theirs, bench.scale.repeats)
    counted = f"{TOKENS_COUNTED}; {batch_rows} rows a step on our side, {their_batch_rows} on theirs"
    case = Case.of(name, "tokens/s", counted, rates, their_rates)
    flops = cost.flops_per_token(recipe.model, size, cost.mean_context(ours.rows), recipe.masking.rate)
    return replace(case, peak_flops=max(peaks), peak_share=case.ours.median * flops / max(peaks))


@dataclass
class MeterObserver:
    """Tells a meter how far training has come, and keeps nothing else."""

    meter: Meter

    def log(self, position: "Position", interval: "Interval") -> None:
        """Take note of a step."""
        self.meter.after_step(position.tokens)

    def evaluated(self, position: "Position", metrics: Mapping[str, float], model: "nn.Module") -> None:
        """Ignore the held-out metrics."""

    def checkpoint(self, position: "Position", model: "nn.Module", optimiser: "Optimiser") -> None:
        """Save nothing."""


def train_ours(bench: Bench) -> float:
    """Train as `mlm.pretrain` does; return tokens a second."""
    from mlm.loop import Intervals, Plan, Position, train
    from mlm.model.heads import MaskedLanguageModel
    from mlm.model.initialise import initialise
    from mlm.objective import MaskedLanguageModelling, heldout_batches

    recipe, corpus, world, rows, meter = bench.recipe, bench.corpus, bench.world, bench.scale.batch_rows, bench.meter()
    seed, masking, most_rows = recipe.train.seed, recipe.masking, recipe.evaluation.most_rows
    heldout = heldout_batches(corpus.heldout, masking, world, most_rows=most_rows, micro_batch_rows=most_rows)
    task = MaskedLanguageModelling(corpus.train, heldout, masking, world, seed, rows, rows)
    model = MaskedLanguageModel(recipe.model, corpus.shards.manifest.vocabulary_size, recipe.data.row_length)
    initialise(model, recipe.model.encoder, seed)
    model.to(world.device)
    train(
        model,
        task,
        recipe.optim.build(model),
        recipe.schedule,
        Plan(steps=NEVER),
        world,
        MeterObserver(meter),
        seed=seed,
        clip_norm=recipe.train.clip_norm,
        intervals=Intervals(log_steps=1, evaluate_steps=NEVER, checkpoint_steps=NEVER),
        start=Position(),
        stop=lambda: meter.finished,
    )
    return meter.rate


def assemble_and_mask(bench: Bench, name: str) -> list[Case]:
    """Compare with the collator, on one thread, on the same rows, which it is given in memory as lists."""
    import torch

    ours, recipe = bench.corpus.train, bench.recipe
    batch_rows = recipe.train.batch_rows
    numbers = [ours.step_rows(recipe.train.seed, step, batch_rows) for step in range(COLLATED_BATCHES)]
    wholes = [ours.assemble(rows_B) for rows_B, _ in numbers]
    collated = [
        competition.examples(ids[ids_seen > 0] for ids, ids_seen in zip(whole.ids_BL, whole.segments_BL, strict=True))
        for whole in wholes
    ]
    tokens = sum(int((whole.segments_BL > 0).sum()) for whole in wholes) / COLLATED_BATCHES
    collate = competition.collator(bench.corpus.tokenizer_path)

    def assemble(batch: int) -> object:
        return ours.masked(*numbers[batch], recipe.masking, recipe.masking.rate, recipe.train.seed)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = alternate(
            lambda: tokens * _times_per_second(assemble, bench.scale.seconds / 2),
            lambda: tokens * _times_per_second(lambda batch: collate(collated[batch]), bench.scale.seconds / 2),
            bench.scale.repeats,
        )
    finally:
        torch.set_num_threads(threads)
    return [
        Case.of(name, "tokens/s", f"tokens that are not padding, in batches of {batch_rows} rows, one thread", *rates)
    ]


def _times_per_second(make: Callable[[int], object], seconds: float) -> float:
    make(0)
    began, elapsed = time.perf_counter(), 0.0
    for count in itertools.count(1):
        make(count % COLLATED_BATCHES)
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            break
    return count / elapsed


def build_shards(bench: Bench, name: str) -> list[Case]:
    """Compare with datasets.map, each in a process of its own, without worker processes; then on more text."""
    corpus = bench.corpus
