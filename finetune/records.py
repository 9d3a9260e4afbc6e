"""Take down a fine-tuning run while it goes on: metrics.jsonl and TensorBoard, trial by trial."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune.trial import Record
from mlm.tracking.run_directory import finite

METRICS = "metrics.jsonl"


class TrialLogger:
    """The open records of a run."""

    def __init__(self, path: Path) -> None:
        """Open the records of the run at `path`."""
        self.path = path
        self._lines = (path / METRICS).open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()

    @contextmanager
    def of_trial(self, fold: int, seed: int, *, control: bool) -> Iterator[Record]:
        """Give a function that takes down a trial's metrics."""
        from torch.utils.tensorboard import SummaryWriter

        name = f"{'random-' if control else ''}fold{fold}-seed{seed}"
        with SummaryWriter(str(self.path / "trials" / name)) as board:

            def record(side: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
                where = {"trial": name, "fold": fold, "seed": seed, "control": control}
                line = where | {"side": side, "step": step, "epoch": epoch} | finite(values)
                self._lines.write(json.dumps(line) + "\n")
                self._lines.flush()
                for metric, value in values.items():
                    board.add_scalar(f"{side}/{metric}", value, step)

            yield record
