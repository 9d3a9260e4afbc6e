"""The tools that show a run beside its metrics.jsonl: TensorBoard, Weights & Biases, MLflow, Trackio.

Each is imported only where a run names it. Unless a variable of its own says so, none needs an account or a network.
All get the same names of metrics over the same steps. A tool that fails never stops training.
"""

import html
import io
import logging
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from configs import UserError
from configs.extras import require
from mlm.config import TrackerName
from mlm.tracking import run_directory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

IDS = "tracking.json"
"""File of a run with its id in each tool, under which it is continued when it resumes."""
PROJECT = "mlm"
"""Name of the project or experiment in each tool, unless the tool's own variable names another."""

MOST_PARAMETERS = 100
"""Settings that MLflow takes at once."""
NOT_IN_MLFLOW = re.compile(r"[^\w./ :-]")
"""Characters that MLflow takes in no name of a metric."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracked:
    """The thing tracked: a run, or a trial of one."""

    run: Path
    """The run's directory."""
    config: Mapping[str, Any]
    """The settings, in sections."""
    trial: str = ""
    """Name of the trial; empty for the run itself."""
    start: int = 0
    """The step from which a resumed run goes on."""
    id: str | None = None
    """Its id in the tool, if it was tracked before."""

    @property
    def name(self) -> str:
        """The name to be shown."""
        return f"{self.run.name}-{self.trial}" if self.trial else self.run.name


class Tracker(ABC):
    """A tool that shows metrics over steps, texts, pictures and results."""

    package: ClassVar[str]
    """The package that has to be installed; the extra that brings it has the tool's name in a recipe."""
    failures: ClassVar[type[Exception]] = Exception
    """The exceptions of its package: any, for it declares none."""
    recovers: ClassVar[bool] = False
    """True if it may be used again after a failure."""
    id: str | None = None
    where: str = ""
    """The way to look at its records, for the log."""

    @abstractmethod
    def __init__(self, tracked: Tracked) -> None:
        """Begin to track, or go on with what was tracked under the same id."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Show metrics at a step."""

    @abstractmethod
    def log_text(self, name: str, text: str, step: int) -> None:
        """Show a text at a step."""

    @abstractmethod
    def log_picture(self, name: str, path: Path) -> None:
        """Show the PNG file at `path`."""

    @abstractmethod
    def conclude(self, results: Mapping[str, Any], step: int) -> None:
        """Show the results of a finished run."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """Write all that is queued, and end all threads and processes; the run is finished, or may be resumed."""


class TensorBoard(Tracker):
    """Writes TensorBoard's files; after a full disk, with a new writer at the next chance."""

    package = "tensorboard"
    failures = OSError
    recovers = True

    def __init__(self, tracked: Tracked) -> None:
        """Write into the run's directory; TensorBoard hides the events there that come after the start."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = tracked.run / "trials" / tracked.trial if tracked.trial else tracked.run
        self.settings = {name: value for name, value in _flat(tracked.config) if value is not None}
        purge_step = tracked.start + 1 if tracked.start else None
        self.writer: SummaryWriter | None = SummaryWriter(str(self.folder), purge_step=purge_step)

    def _write(self, show: Callable[["SummaryWriter"], object]) -> None:
        """Give the writer to `show`; raise an OSError if the disk fails, now or with earlier events, which are lost."""
        from torch.utils.tensorboard import SummaryWriter

        try:
            if self.writer is None:
                self.writer = SummaryWriter(str(self.folder))
            show(self.writer)
        except OSError:
            self.writer = None
            raise

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        def show(writer: "SummaryWriter") -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        self._write(show)

    def log_text(self, name: str, text: str, step: int) -> None:
        self._write(lambda writer: writer.add_text(name, text, step))

    def log_picture(self, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels_HWC = np.asarray(picture.convert("RGB"))
        self._write(lambda writer: writer.add_image(name, pixels_HWC, dataformats="HWC"))

    def conclude(self, results: Mapping[str, Any], step: int) -> None:
        """Show the settings beside the held-out scores, if there are any."""
        scores = {f"hparam/{name}": value for name, value in results.get("heldout", {}).items() if value is not None}
        if scores:
            self._write(lambda writer: writer.add_hparams(self.settings, scores, run_name="."))

    def close(self, *, finished: bool) -> None:
        if self.writer is not None:
            self._write(lambda writer: writer.close())


class WeightsAndBiases(Tracker):
    """Writes a run of Weights & Biases: into the run's directory, or online if WANDB_MODE=online."""

    package = "wandb"

    def __init__(self, tracked: Tracked) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            mode=mode,
            dir=tracked.run,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=tracked.name,
            group=tracked.run.name if tracked.trial else None,
            id=tracked.id,
            resume="allow",
            config=dict(tracked.config),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")
        self.id = self.run.id
        self.where = f"wandb sync {Path(self.run.dir).parent}" if mode == "offline" else str(self.run.url)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({**metrics, "step": step})

    def log_text(self, name: str, text: str, step: int) -> None:
        import wandb

        self.run.log({name: wandb.Html(f"<pre>{html.escape(text)}</pre>"), "step": step})

    def log_picture(self, name: str, path: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path))})

    def conclude(self, results: Mapping[str, Any], step: int) -> None:
        self.run.summary.update(dict(_numbers(results)))

    def close(self, *, finished: bool) -> None:
        import wandb

        self.run.finish(exit_code=0 if finished else 1)
        if wandb.run is None:  # else the caller tracks a run of its own by the same service
            wandb.teardown()


class MLflow(Tracker):
    """Writes a run of MLflow: into mlflow.db in the run's directory, or where MLFLOW_TRACKING_URI says."""

    package = "mlflow"

    def __init__(self, tracked: Tracked) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read on import; it would use the network
        from mlflow import MlflowClient
        from mlflow.entities import Param

        folder = tracked.run.resolve()
        store = os.environ.get("MLFLOW_TRACKING_URI")
        self.client = MlflowClient(tracking_uri=store or f"sqlite:///{folder / 'mlflow.db'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        artifacts = None if store else (folder / "mlflow").as_uri()
        number = experiment.experiment_id if experiment else self.client.create_experiment(name, artifacts)
        if tracked.id is None:
            tags = {"mlflow.source.name": str(tracked.run), "group": tracked.run.name}
            self.id = self.client.create_run(number, run_name=tracked.name, tags=tags).info.run_id
            settings = [Param(key, str(value)) for key, value in _flat(tracked.config)]
            for start in range(0, len(settings), MOST_PARAMETERS):
                self.client.log_batch(self.id, params=settings[start : start + MOST_PARAMETERS])
        else:
            self.id = tracked.id
            self.client.update_run(self.id, status="RUNNING")
        self.where = store or f"mlflow ui --backend-store-uri sqlite:///{folder / 'mlflow.db'}"

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(NOT_IN_MLFLOW.sub("_", name), value, now, step) for name, value in metrics.items()]
        self.client.log_batch(self.id, points)

    def log_text(self, name: str, text: str, step: int) -> None:
        self.client.log_text(self.id, text, f"{name}/step-{step:08}.txt")

    def log_picture(self, name: str, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def conclude(self, results: Mapping[str, Any], step: int) -> None:
        self.log(dict(_numbers(results)), step)

    def close(self, *, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class Trackio(Tracker):
    """Writes a run of Trackio into its local folder, the hub's cache unless TRACKIO_DIR names one; or to its Space."""

    package = "trackio"

    def __init__(self, tracked: Tracked) -> None:
        import trackio

        self.id = tracked.id or tracked.name
        printed = io.StringIO()
        with redirect_stdout(printed):
            self.run = trackio.init(
                project=PROJECT,
                name=self.id,
                group=tracked.run.name if tracked.trial else None,
                config=dict(tracked.config),
                resume="allow" if tracked.id else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        logger.debug(printed.getvalue())
        self.where = f"trackio show --project {PROJECT}"

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def log_text(self, name: str, text: str, step: int) -> None:
        import trackio

        self.run.log({name: trackio.Markdown(text)}, step=step)

    def log_picture(self, name: str, path: Path) -> None:
        import trackio

        self.run.log({name: trackio.Image(str(path))})

    def conclude(self, results: Mapping[str, Any], step: int) -> None:
        self.log(dict(_numbers(results)), step)

    def close(self, *, finished: bool) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()


TRACKERS: Mapping[TrackerName, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise a UserError with the install command if a tool is not installed."""
    for name in names:
        require(TRACKERS[name].package, extra=name, purpose=f"tracking={name}")


class Trackers:
    """The tools that show a run or a trial; one that fails is named by a warning, and training continues without it."""

    def __init__(self, names: Sequence[TrackerName], tracked: Tracked) -> None:
        """Begin to track by each tool, or go on under the ids that the run's directory keeps."""
        self.tracked, self.opened = tracked, dict[str, Tracker]()
        kept = run_directory.read_json(tracked.run / IDS) if (tracked.run / IDS).exists() else {}
        for name in names:
            kind = TRACKERS[name]
            try:
                check_installed([name])
                tracker = self.opened[name] = kind(replace(tracked, id=None if tracked.trial else kept.get(name)))
            except (kind.failures, UserError) as error:
                self._warn(name, "RUN", error, kind)
            else:
                if tracker.where:
                    logger.info("%s: %s", name, tracker.where)
        ids = kept | {name: tracker.id for name, tracker in self.opened.items() if tracker.id is not None}
        if ids != kept and not tracked.trial:
            run_directory.write_json(tracked.run / IDS, ids)

    def log(self, side: str, record: Mapping[str, float | None], step: int) -> None:
        """Show the measures of a record, under the names side/measure; those that could not be taken are left out."""
        metrics = {f"{side}/{name}": value for name, value in record.items() if value is not None}
        self._each(f"RECORD OF STEP {step}", lambda tracker: tracker.log(metrics, step))

    def log_text(self, name: str, text: str, step: int) -> None:
        """Show a text at a step."""
        self._each(f"{name.upper()} OF STEP {step}", lambda tracker: tracker.log_text(name, text, step))

    def log_picture(self, name: str, path: Path) -> None:
        """Show a PNG file."""
        self._each(name.upper(), lambda tracker: tracker.log_picture(name, path))

    def conclude(self, results: Mapping[str, Any], step: int) -> None:
        """Show the results of a finished run."""
        self._each("SETTINGS AND SCORES", lambda tracker: tracker.conclude(results, step))

    def close(self, *, finished: bool) -> None:
        """End all tools; a second call changes nothing."""
        self._each("LAST RECORDS", lambda tracker: tracker.close(finished=finished))
        self.opened.clear()

    def _each(self, name: str, show: Callable[[Tracker], None]) -> None:
        for tool, tracker in list(self.opened.items()):
            try:
                show(tracker)
            except tracker.failures as error:
                self._warn(tool, name, error, type(tracker))
                if not tracker.recovers:
                    del self.opened[tool]

    def _warn(self, tool: str, name: str, error: Exception, kind: type[Tracker]) -> None:
        mend = f"make room in {self.tracked.run}" if kind.recovers else f"without {tool}, which is tried on resuming"
        reason = " ".join(str(error).split()) or type(error).__name__
        logger.warning("%s ON %s NOT WRITTEN (%s): training continues: %s", name, tool.upper(), reason, mend)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings with their paths as names; a list is a text."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _numbers(values: Mapping[str, Any], prefix: str = "results/") -> Iterator[tuple[str, float]]:
    """Yield the numbers among nested results, under names such as results/heldout/loss."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)
