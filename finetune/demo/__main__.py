"""Try a model on a page in the browser: hide words and see the candidates, or classify; look at the attention."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from configs import UserError, command, files
from finetune.demo.limits import LOOPBACK
from mlm.distributed.process import configure_process

if TYPE_CHECKING:  # imported by `main`, because configure_process comes before torch
    from finetune.demo.models import Classifier, LanguageModel

EXAMPLES = """
examples:
  python -m finetune.demo                                       the newest run, at http://127.0.0.1:7860/
  python -m finetune.demo runs/x "Return the [MASK] of the list." "Open the file."
  python -m finetune.demo exported/ --port 7861
  python -m finetune.demo runs/x --export page.html             one file that needs no server

TEXTs are the examples of the page. The page is seen on this machine alone.
"""
PORT = 7860
SENTENCES = ("Return the [MASK] of the list.", "The old bridge was closed after the [MASK] last night.")
MESSAGES = ("Earthquake kills hundreds, rescue teams search the ruins.", "What a lovely day at the lake!")
"""The examples of a language model and of a classifier."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m finetune.demo", description=__doc__, epilog=EXAMPLES)
    kinds = "a run of pretraining or of fine-tuning, or an exported folder (default: the newest run in runs/)"
    parser.add_argument("run", nargs="?", type=Path, help=kinds)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="examples; [MASK] stands for a hidden word")
    parser.add_argument("--port", type=int, default=PORT, help=f"port of the page (default: {PORT}; 0: any free one)")
    parser.add_argument("--export", type=Path, metavar="PAGE.html", help="write the page with its examples, and end")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    if not 0 <= options.port < 65_536:
        raise UserError(f"--port {options.port}: a port is a number from 0 to 65535")
    if options.export is not None:
        files.check_new(options.export)
    configure_process()
    from finetune.demo import models, page, server
    from mlm.distributed.world import init_world

    if options.export is None:
        server.check_gradio()
    with server.bound(options.port) if options.export is None else nullcontext() as listening:
        path, world = options.run or models.newest(), init_world()
        model = models.open_model(path, world)
        content = page.content(model, path.resolve().name, _examples(options.texts, model))
        if listening is None:
            answered = page.answered(model, content["examples"], world)
            files.write_text(options.export, page.page({**content, "answers": answered}), new=True)
            print(f"{options.export}: open it in a browser", file=sys.stderr)
            return
        with tempfile.TemporaryDirectory() as folder:
            application = server.build(model, content, world, server.Tables(Path(folder)))
            print(f"http://{LOOPBACK}:{listening.getsockname()[1]}/  {path}  (Ctrl-C ends it)", flush=True)
            server.serve(application, listening)


def _examples(texts: Sequence[str], model: "LanguageModel | Classifier") -> list[Sequence[str]]:
    """Return the examples, each of as many texts as the model reads at once."""
    from finetune.demo import models, page

    at_once = len(page.columns_of(model))
    given = texts or (SENTENCES if isinstance(model, models.LanguageModel) else MESSAGES)
    if len(given) % at_once:
        raise UserError(f"{len(given)} texts: the model reads {at_once} at once: name {at_once} for each example")
    return [given[start : start + at_once] for start in range(0, len(given), at_once)]


script = partial(command.run, main)

if __name__ == "__main__":
    script()
