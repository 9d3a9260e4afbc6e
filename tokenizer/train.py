"""Learn a byte-level BPE vocabulary from text and save it as a standard tokenizer.json."""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs import UserError, command
from tokenizer import command_line, vocabulary
from tokenizer.cache import learn_from, save
from tokenizer.vocabulary import MAXIMUM_SIZE, MINIMUM_SIZE, VocabularyConfig

_EXAMPLES = """\
  python -m tokenizer.train --output tokenizer.json
  python -m tokenizer.train 'texts/**/*.txt.gz' --output tokenizer.json --vocabulary 8192 vocabulary.lowercase=true
  python -m tokenizer.train pairs.tsv --output tokenizer.json text.source.columns=[ko,en]
"""


class Options(command_line.TextOptions):
    """The options of this command."""

    vocabulary: VocabularyConfig = VocabularyConfig()
    """The vocabulary to learn."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line.parser("tokenizer.train", __doc__ or "", _EXAMPLES, Options)
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="the tokenizer.json to write")
    parser.add_argument(
        "--vocabulary",
        metavar="SIZE",
        help=f"number of tokens, {MINIMUM_SIZE} (bytes only) to {MAXIMUM_SIZE}: short for vocabulary.size "
        f"(default {VocabularyConfig().size})",
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    given = parse(arguments)
    size = [f"vocabulary.size={given.vocabulary}"] if given.vocabulary else []
    options = command_line.configuration(Options, given.files, size)
    is_taken = given.output.is_file() or given.output.is_dir()  # not a pipe or standard output
    if is_taken:
        vocabulary.load(given.output)  # raises now, not after learning, where this is no tokenizer
    given.output.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    tokenizer, remarks = learn_from(options.text, options.vocabulary)
    seconds = time.monotonic() - start
    for remark in remarks:
        print(remark)
    if not is_taken:
        save(tokenizer, given.output)
        print(f"{given.output}: {tokenizer.get_vocab_size():,} tokens, learned in {seconds:.1f} s")
    elif vocabulary.sha256(vocabulary.load(given.output)) == vocabulary.sha256(tokenizer):
        print(f"{given.output}: already there, and the same")
    else:
        raise UserError(f"{given.output} holds another tokenizer: remove it, or name another file as --output")


script = partial(command.run, main)

if __name__ == "__main__":
    script()
