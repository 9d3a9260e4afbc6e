"""Fill in the blanks of sentences with a pretrained encoder."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs import UserError, command
from mlm.distributed.process import configure_process


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(
        prog="python -m mlm.fill_mask",
        description=__doc__,
        epilog='example: python -m mlm.fill_mask "Return the [MASK] of the list." --top 3',
    )
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help="text with [MASK] in it; none: lines of stdin")
    parser.add_argument("--run", type=Path, help="run directory (default: the newest one in runs/)")
    parser.add_argument("--top", type=int, default=5, help="guesses for each blank (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object for each sentence")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    if options.top < 1:
        raise UserError(f"--top is {options.top}: it must be 1 or more")
    configure_process()
    from mlm.checkpoint import checkpoint
    from mlm.distributed.world import init_world
    from mlm.evaluation import fill_blanks
    from mlm.tracking import run_directory

    world = init_world()
    path = options.run or run_directory.newest()
    folder = checkpoint.resolve(path)
    run_directory.check_head(checkpoint.run_of(folder))
    print(f"run: {checkpoint.run_of(path)}, {folder.name}", file=sys.stderr)
    model, tokenizer, config = checkpoint.load_model(folder, world.device)

    def answer(sentence: str) -> None:
        batch = fill_blanks.read_blanks(sentence, tokenizer, config.data.row_length)
        guesses = fill_blanks.guess(model, batch, tokenizer, world, options.top)
        if options.json:
            found = [[{"token": g.token, "probability": g.probability} for g in blank] for blank in guesses]
            command.show(json.dumps({"sentence": sentence, "blanks": found}, ensure_ascii=False))
            return
        command.show(sentence)
        for number, blank in enumerate(guesses, start=1):
            shown = "  ".join(f"{g.token.strip() or repr(g.token)} {g.probability:.1%}" for g in blank)
            command.show(f"  {f'[MASK] {number}: ' if len(guesses) > 1 else ''}{shown}")

    for sentence in options.sentences:
        answer(sentence)
    if not options.sentences:
        command.answer_lines(answer)


script = partial(command.run, main)

if __name__ == "__main__":
    script()
