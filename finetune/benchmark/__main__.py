"""Measure fine-tuning and prediction beside the transformers library's Trainer: in turn, on one encoder and machine.

Both sides have the same BERT with a linear layer on [CLS], the same dropout, texts and batch size, and AdamW. Ours is
the shipped loop: batches of examples of like length, in bfloat16 where it is faster. Theirs is the Trainer, in a
process of its own, once on examples that are all padded to 64 tokens and in float32, and once at its best: padded to
the longest of each batch only, and in our precision. Every figure is a median with the lowest and the highest; what
exactly it counts stands in the JSON.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from configs import UserError, command, read
from finetune.benchmark import hf_trainer, speed
from finetune.benchmark.speed import FULL, LONGEST, QUICK, RECIPE, Bench, Scale
from finetune.config import FinetuneConfig
from finetune.data.bigram_shift import BigramShift
from finetune.data.examples import Dataset
from finetune.data.labelled import Labelled
from finetune.encoders.published import PublishedEncoder, load_published
from mlm.benchmark import hf_trainer as pretraining
from mlm.benchmark import measure
from mlm.benchmark.measure import Case
from mlm.distributed.world import init_world
from mlm.tracking import run_directory
from tokenizer.cleaning import TextConfig

CASES: dict[str, Callable[[Bench, str], Case]] = {
    "training/padded-to-64": speed.train_padded_to_fixed,
    "training/padded-to-batch": speed.train_padded_to_batch,
    "prediction/padded-to-64": speed.predict_padded_to_fixed,
}
SEED = 0


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    pretraining.check_installed()
    cases: list[Case] = []
    bench, output = prepare(options), options.output
    output.mkdir(parents=True, exist_ok=True)
    try:
        for name in options.cases or CASES:
            print(f"measuring {name}", file=sys.stderr)
            cases.append(CASES[name](bench, name))
            write(output, bench, cases)
    finally:  # Ctrl-C costs only the case that it interrupts
        print(measure.table(cases) if cases else "nothing was measured")
    print(f"\nplot: {output / 'benchmark.png'}    all figures: {output / 'benchmark.json'}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(
        prog="python -m finetune.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help=f"what to measure; all: {', '.join(CASES)}")
    add("--encoder", metavar="NAME", help="a published BERT, folder or name on the hub; default: a random one, 4 x 256")
    add("--file", metavar="FILE", help="table of labelled texts; default: bigram shift in Python's documentation")
    add("--text", default="text", metavar="COLUMN", help="the file's column of texts; default: %(default)s")
    add("--label", default="label", metavar="COLUMN", help="the file's column of classes; default: %(default)s")
    add("--vocabulary", type=int, default=8192, metavar="N", help="of the random encoder; default: %(default)s")
    add("--output", type=Path, default=Path("runs/finetune-benchmark"), metavar="DIR", help="default: %(default)s")
    add("--repeats", type=int, metavar="N", help=f"turns of each side; {FULL.repeats}, {QUICK.repeats} if quick")
    add("--seconds", type=float, metavar="S", help=f"length of a turn; {FULL.seconds:g}, {QUICK.seconds:g} if quick")
    add("--quick", action="store_true", help="look within a minute: a tiny random encoder, small batches, short turns")
    options = parser.parse_intermixed_args(arguments)
    for name in options.cases:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1)
            parser.error(f"no such case: {name}: " + (f"did you mean {near[0]}?" if near else ", ".join(CASES)))
    if options.repeats is not None and options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    if options.seconds is not None and not 0 < options.seconds < float("inf"):
        parser.error("--seconds must be over 0")
    return options


def prepare(options: argparse.Namespace) -> Bench:
    """Return what the command line asks for.

    Raises:
        UserError: the file or the encoder cannot be used.

    """
    scale = QUICK if options.quick else FULL
    scale = replace(scale, repeats=options.repeats or scale.repeats, seconds=options.seconds or scale.seconds)
    if options.file is not None:
        data = Labelled(train=options.file, text=options.text, label=options.label).load(TextConfig())
    else:
        print("making the texts", file=sys.stderr)
        data = BigramShift().load(TextConfig())
    if options.encoder is not None:
        encoder = load_published(options.encoder, None, random=False, seed=SEED)
    else:
        encoder = draw_encoder(options.output / "encoder", data, scale, options.vocabulary)
    hf_trainer.check_type(encoder)
    recipe = read(FinetuneConfig, None, (*RECIPE, f"train.batch_examples={scale.batch_examples}"))
    world = init_world().with_precision(recipe.train.precision)
    return Bench(scale, recipe, data, encoder, min(encoder.longest, LONGEST), world)


def draw_encoder(folder: Path, data: Dataset, scale: Scale, vocabulary_size: int) -> PublishedEncoder:
    """Write BERT in a size of ours to `folder` as it would be published, and return it with random weights.

    Raises:
        UserError: the texts are too few for a vocabulary of this size.

    """
    from transformers import BertConfig

    from tokenizer import vocabulary
    from tokenizer.vocabulary import VocabularyConfig

    if not vocabulary.MINIMUM_SIZE <= vocabulary_size <= vocabulary.MAXIMUM_SIZE:
        raise UserError(
            f"--vocabulary {vocabulary_size}: must be {vocabulary.MINIMUM_SIZE} to {vocabulary.MAXIMUM_SIZE}"
        )
    texts = (text for texts in data.train.texts for text in texts)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_bytes(
        vocabulary.serialise(vocabulary.learn(texts, VocabularyConfig(size=vocabulary_size, cls_sep=True)))
    )
    pretraining.open_tokenizer(path).save_pretrained(str(folder))
    BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=scale.width,
        num_hidden_layers=scale.layers,
        num_attention_heads=max(scale.width // 64, 1),
        intermediate_size=4 * scale.width,
        max_position_embeddings=2 * LONGEST,
    ).save_pretrained(folder)
    return load_published(str(folder), None, random=True, seed=SEED)


def write(output: Path, bench: Bench, cases: Sequence[Case]) -> None:
    """Write the JSON and the plot of what was measured so far."""
    from importlib import metadata

    about: dict[str, Any] = run_directory.environment(bench.world)
    del about["git_diff"]
    about["versions"] |= {name: metadata.version(name) for name in pretraining.PACKAGES}
    about |= {
        "scale": asdict(bench.scale),
        "recipe": bench.recipe.model_dump(mode="json"),
        "encoder": bench.encoder.model.config.to_dict(),
        "training_examples": len(bench.data.train),
        "mean_tokens": speed.mean_length(bench.train),
        "longest": bench.longest,
        "cases": [asdict(case) for case in cases],
    }
    run_directory.write_json(output / "benchmark.json", about)
    measure.draw(cases, output / "benchmark.png")


if __name__ == "__main__":
    command.run(main)
