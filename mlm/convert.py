"""Convert a published encoder into a run: our layers, exactly, with its tokenizer."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs import UserError, command, files
from mlm.distributed.process import configure_process

USAGE = """
BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA (discriminator, generator), DistilBERT, ModernBERT, and models with BERT's
layers such as MiniLM's. The run is then as any other:

  python -m mlm.convert google-bert/bert-base-uncased runs/bert     from the Hugging Face hub
  python -m mlm.convert folder/of/model runs/mine --row-length 128  from a folder with config.json
  python -m mlm.fill_mask --run runs/bert "The sky is [MASK]."
  python -m mlm.pretrain start_from=runs/bert text.source.kind=files "text.source.paths=[mine.txt]"
  python -m finetune.linear_head encoder.run=runs/bert ...

Before anything is written, hidden states and scores are compared with those of transformers: at most 1e-4 apart.
"""

COUNT = 500
"""Words to add from a text, if no number is given."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m mlm.convert", description=__doc__, epilog=USAGE)
    parser.add_argument("name", metavar="NAME_OR_FOLDER", help="a name on the hub, or a folder with the model")
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of the run to write; it must not exist")
    parser.add_argument("--revision", help="branch, tag or commit on the hub (default: the newest)")
    parser.add_argument(
        "--row-length", type=int, metavar="N", help="tokens of a text at most (default: the model's; 512 if rotary)"
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--add-tokens", type=Path, metavar="WORDS.txt", help="words to add to the vocabulary, one a line"
    )
    words.add_argument("--add-tokens-from", type=Path, metavar="TEXT", help="add those of a text that are cut most")
    parser.add_argument("--count", type=int, help=f"words to add from TEXT (default: {COUNT})")
    parser.add_argument(
        "--added-rows",
        choices=("mean-of-pieces", "mean", "random"),
        help="first values of an added word: the mean of its pieces' (default), the mean of all, or random",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.count is not None and options.add_tokens_from is None:
        parser.error("--count is for --add-tokens-from alone")
    if options.added_rows is not None and options.add_tokens is None and options.add_tokens_from is None:
        parser.error("--added-rows is for --add-tokens or --add-tokens-from alone")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    configure_process()
    from mlm.distributed.world import init_world
    from mlm.interop import conversion, published
    from mlm.tracking import converted_run
    from tokenizer import added_words
    from tokenizer.sources import Files

    wanted = COUNT if options.count is None else options.count
    if wanted < 1:
        raise UserError(f"--count is {wanted}: it must be 1 or more")
    files.check_absent(options.run)
    found = published.read(options.name, options.revision)
    for remark in found.remarks:
        print(f"note: {remark}", file=sys.stderr)
    converted = conversion.convert(found, conversion.row_length_of(found, options.row_length))
    words = list[str]()
    if options.add_tokens is not None:
        words = added_words.read_words(options.add_tokens)
    elif options.add_tokens_from is not None:
        texts = (document.text for document in Files(paths=(str(options.add_tokens_from),)).documents())
        words = added_words.most_cut_words(converted.tokenizer, texts, wanted)
        if not words:
            raise UserError(
                f"{options.add_tokens_from} has no word that is cut into pieces and seen {added_words.LEAST_SEEN}"
                " times: take a longer text, or name words by --add-tokens"
            )
        if len(words) < wanted:
            print(f"note: {len(words)} words are added, not {wanted}: the text has no more to add", file=sys.stderr)
    if words:
        converted = conversion.with_added_words(converted, words, options.added_rows or "mean-of-pieces")
    differences = conversion.check(converted)
    record = conversion.record(converted, options.name, options.revision, differences)
    converted_run.write(options.run, converted, record, init_world())
    for line in conversion.summary(converted, options.run, differences):
        command.show(line)


script = partial(command.run, main)

if __name__ == "__main__":
    script()
