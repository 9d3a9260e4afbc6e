"""The functions of a model that the page uses, and the opening of one by its path."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from configs import UserError
from finetune.demo.words import Reading
from finetune.encoders import MODEL_FOLDER
from finetune.table import TableClassifier
from mlm.checkpoint import checkpoint
from mlm.config import RUNS
from mlm.distributed.world import World
from mlm.evaluation.fill_blanks import Guess
from mlm.interop.hub import CONFIG
from mlm.tracking import run_directory


class Attentive(Protocol):
    """A model whose attention can be looked at."""

    @property
    def longest(self) -> int:
        """Largest number of tokens of a text, with special ones."""

    def read(self, texts: Sequence[str], hidden: Sequence[int] = ()) -> Reading:
        """Return the tokens of a text or pair, with a mask token in place of each of the `hidden` words."""

    def weights(self, read: Reading) -> Sequence[Tensor]:
        """Return the attention weights of each layer, (H, L, L), in float32 on the CPU."""


@runtime_checkable
class LanguageModel(Attentive, Protocol):
    """A masked language model."""

    @property
    def mask(self) -> str:
        """The mask token in a text."""

    def guess(self, read: Reading, top: int) -> list[list[Guess]]:
        """Return the most probable tokens for each mask token, in their order."""


class Classifier(Attentive, TableClassifier, Protocol):
    """A classifier of texts or pairs."""


def newest(runs: Path = Path(RUNS)) -> Path:
    """Return the run in `runs` that was started last and has a model; a UserError if there is none."""
    kinds = (run_directory.PRETRAINING, run_directory.FINE_TUNING)
    found = [path for kind in kinds for path in run_directory.newest_first(runs, kind) if _has_model(path)]
    if not found:
        raise UserError(f"there is no run with a model in {runs}: start one by python -m mlm.pretrain")
    return max(found, key=lambda path: (path / checkpoint.CONFIG).stat().st_mtime_ns)


def _has_model(run: Path) -> bool:
    saved = checkpoint.completed(run) or [run / MODEL_FOLDER]
    return any(map(checkpoint.is_whole, saved))


def open_model(path: Path, world: World) -> LanguageModel | Classifier:
    """Return the model of a run of either kind, of a checkpoint, or of a folder in the format of transformers."""
    if (path / CONFIG).is_file():
        from finetune.demo.exported import open_exported

        return open_exported(path, world)
    from finetune.demo.trained import open_classifier, open_language_model

    run = checkpoint.run_of(path)
    if (run / MODEL_FOLDER).is_dir():
        return open_classifier(run, world)
    if path.is_dir() and not (path / checkpoint.CONFIG).is_file() and not checkpoint.completed(path):
        raise UserError(f"{path} is no model: it is neither a run, such as runs/x, nor a folder with a {CONFIG}")
    run_directory.check_head(run)
    return open_language_model(path, world)
