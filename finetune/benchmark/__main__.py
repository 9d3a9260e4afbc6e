"""Measure fine-tuning and prediction beside the transformers library's Trainer: in turn, on one encoder and machine.

Both sides have the same BERT with a linear layer on [CLS], the same dropout, texts and batch size, and AdamW. Our side
is the training loop of `finetune.linear_head`: batches of examples of similar length, in bfloat16 where it is faster.
Their side is the Trainer in a process of its own: once in float32 with all examples padded to 64 tokens, and once at
its best, in our precision with examples padded to the longest of their batch. Every figure is a median with the lowest
and the highest; the JSON states the exact definition.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from configs import UserError, command, read
from finetune import heads
from finetune.benchmark import hf_trainer, speed
from finetune.benchmark.speed import FULL, LONGEST, QUICK, RECIPE, Bench, Scale
from finetune.data.bigram_shift import BigramShift
from finetune.data.examples import Dataset
from finetune.data.labelled import Labelled
from finetune.encoders.published import PublishedEncoder, load_published
from mlm.benchmark import frame, hf_models
from mlm.benchmark.hf_trainer import check_installed, open_tokenizer
from mlm.benchmark.measure import Case
from mlm.distributed.world import init_world
from mlm.model.encoder import EncoderConfig
from tokenizer import vocabulary
from tokenizer.cleaning import Text
from tokenizer.vocabulary import Vocabulary

CASES: dict[str, Callable[[Bench, str], list[Case]]] = {
    "training/padded-to-64": partial(speed.training, padding="fixed"),
    "training/padded-to-batch": partial(speed.training, padding="batch"),
    "prediction/padded-to-64": speed.prediction,
}
SEED = 0
DROPOUT = 0.1
"""Dropout of the random encoder, as in BERT."""


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    check_installed()
    options.output.mkdir(parents=True, exist_ok=True)
    bench = prepare(options)
    frame.run(bench, [(name, partial(CASES[name], bench, name)) for name in options.cases or CASES], options.output)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; a wrong option and an unknown case are a UserError."""
    parser = frame.parser("finetune.benchmark", __doc__, CASES, "runs/finetune-benchmark")
    add = parser.add_argument
    add("--encoder", metavar="NAME", help="a published BERT, folder or name on the hub; default: a random one, 4 x 256")
    add("--file", metavar="FILE", help="table of labelled texts; default: bigram shift in Python's documentation")
    add("--text", default="text", metavar="COLUMN", help="the file's column of texts; default: %(default)s")
    add("--label", default="label", metavar="COLUMN", help="the file's column of classes; default: %(default)s")
    add("--vocabulary", type=int, default=8192, metavar="N", help="of the random encoder; default: %(default)s")
    add("--seconds", type=float, metavar="S", help="length of a turn; default: 4, with --quick 0.3")
    options = frame.parse(parser, arguments, CASES)
    if options.seconds is not None and not 0 < options.seconds < math.inf:
        parser.error("--seconds must be over 0")
    return options


def prepare(options: argparse.Namespace) -> Bench:
    """Return the data, the encoder and the recipe of the command line; an unusable one is a UserError."""
    scale = frame.with_options(QUICK if options.quick else FULL, options)
    if options.file is not None:
        data = Labelled(train=options.file, text=options.text, label=options.label).load(Text())
    else:
        print("making the texts", file=sys.stderr)
        data = BigramShift().load(Text())
    if options.encoder is not None:
        encoder = load_published(options.encoder, None, random=False, seed=SEED)
    else:
        encoder = random_encoder(options.output / "encoder", data, scale, options.vocabulary)
    hf_trainer.check_type(encoder)
    recipe = read(heads.recipe_of("linear"), None, (*RECIPE, f"train.batch_examples={scale.batch_examples}"))
    world = init_world().with_precision(recipe.train.precision)
    return Bench(scale, recipe, data, encoder, min(encoder.longest, LONGEST), world)


def random_encoder(folder: Path, data: Dataset, scale: Scale, vocabulary_size: int) -> PublishedEncoder:
    """Write a BERT of the benchmark's size to `folder` as a published one, and return it with random weights."""
    if not vocabulary.MINIMUM_SIZE <= vocabulary_size <= vocabulary.MAXIMUM_SIZE:
        raise UserError(
            f"--vocabulary {vocabulary_size}: must be {vocabulary.MINIMUM_SIZE} to {vocabulary.MAXIMUM_SIZE}"
        )
    texts = (text for texts in data.train.texts for text in texts)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_bytes(vocabulary.serialise(vocabulary.learn(texts, Vocabulary(size=vocabulary_size, cls_sep=True))))
    open_tokenizer(path).save_pretrained(str(folder))
    attention_heads, wide = max(scale.width // 64, 1), 4 * scale.width
    sizes = EncoderConfig(
        layers=scale.layers, width=scale.width, heads=attention_heads, feedforward_width=wide, dropout=DROPOUT
    )
    hf_models.bert(sizes, vocabulary_size, 2 * LONGEST).config.save_pretrained(folder)
    return load_published(str(folder), None, random=True, seed=SEED)


if __name__ == "__main__":
    command.run(main)
