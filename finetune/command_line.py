"""The command line of fine-tuning, shared by the commands of all heads."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, create_model
from torch import nn

from configs import command, dump, help_text, read
from finetune.config import FinetuneConfig
from finetune.evaluation import report
from finetune.evaluation.results import TrialResult
from finetune.experiment import finetune
from finetune.heads import Head
from finetune.trial import FinetuneObserver, Trial
from mlm.tracking.progress_bar import ProgressBar
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import LoggedMetrics

USAGE = """
examples:
  python -m finetune.{head}                                         the newest run of mlm.pretrain, no data needed
  python -m finetune.{head} configs/finetune/disaster_tweets.yaml data.train=train.csv encoder.run=runs/x
  python -m finetune.{head} configs/finetune/cola.yaml encoder.hub=google/electra-base-discriminator
  python -m finetune.{head} data.kind=labelled data.train=mine.csv data.text=comment data.label=rating
  python -m finetune.{head} control=true "train.seeds=[0, 1, 2]"    beside a randomly initialised encoder

Defaults, then the YAML file, then the overrides; every option can stand in either. Options:
"""


class Console(FinetuneObserver):
    """Shows a run on standard error: its settings, a progress bar, and a line for each trial."""

    def __init__(self) -> None:
        self.bar: ProgressBar | None = None
        self.validation_loss: float | None = None

    def run_started(self, path: Path, summary: str) -> None:
        """Print the summary."""
        print(summary, file=sys.stderr)

    def trial_started(self, trial: Trial, length: TrainingLength, steps_per_epoch: int) -> None:
        """Begin a progress bar."""
        self.bar, self.validation_loss = ProgressBar(length, TrainingProgress()), None

    def log(self, progress: TrainingProgress, metrics: LoggedMetrics) -> None:
        """Advance the progress bar."""
        assert self.bar is not None
        loss = metrics.sums["loss"] / max(metrics.targets, 1)
        self.bar.show(progress, loss, metrics.tokens / metrics.seconds, self.validation_loss)

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Keep the validation loss, to be shown beside the training loss."""
        self.validation_loss = metrics.get("loss")

    def trial_finished(self, trial: Trial, result: TrialResult) -> None:
        """Replace the progress bar by a line of scores."""
        self.close()
        metric = trial.config.train.early_stopping.metric
        print(
            report.trial_line(result.scores, metric, trial.num_folds, control=trial.is_control),
            file=sys.stderr,
        )

    def close(self) -> None:
        """End the progress bar."""
        if self.bar is not None:
            self.bar.close()


def config_of(head: Head) -> type[FinetuneConfig]:
    """Return FinetuneConfig with `head` as its default, and no other kind of head allowed."""
    field = type(head), Field(head, description="The head.")
    return create_model("FinetuneConfig", __base__=FinetuneConfig, head=field)


def parse(head: Head, description: str | None, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of `python -m finetune.<kind>_head`."""
    name = f"{head.kind}_head"
    parser = command.Parser(
        prog=f"python -m finetune.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=USAGE.format(head=name) + help_text(config_of(head)),
    )
    parser.add_argument("recipe", nargs="*", metavar="RECIPE.yaml | section.key=value")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration as YAML")
    return parser.parse_args(arguments)


def main(head: Head, description: str | None, arguments: Sequence[str]) -> None:
    """Run `python -m finetune.<kind>_head`.

    Raises:
        UserError: a setting is wrong, or names another kind of head than the command.

    """
    options = parse(head, description, arguments)
    yaml, overrides = command.split(options.recipe)
    settings = read(config_of(head), yaml, overrides)
    if options.print_config:
        print(dump(settings), end="")
    else:
        console = Console()
        try:
            run = finetune(settings, [console])
        finally:
            console.close()
        if run.report:
            print(run.report)
