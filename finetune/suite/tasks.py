"""The tasks of a suite: their settings, and a run of each that is not finished."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs import UserError, listed, read
from finetune import encoders
from finetune.config import FinetuneConfig
from finetune.data.labelled import files_of, in_folder
from finetune.evaluation import results
from finetune.experiment import finetune
from mlm.checkpoint import checkpoint
from mlm.checkpoint.interrupt import SignalStop
from mlm.config import RUNS
from mlm.tracking.progress_bar import ProgressBar
from mlm.tracking.run_directory import RESULTS

logger = logging.getLogger(__name__)


def configs_of(suite: Path, overrides: Sequence[str], data: Path | None, path: Path) -> dict[str, FinetuneConfig]:
    """Return the settings of each task of a suite, whose runs are made in `path` and whose files lie in `data`.

    Tasks that name the same encoder get the same checkpoint of it. A UserError if any setting is wrong.
    """
    found = {
        recipe.stem: read(FinetuneConfig, recipe, [*overrides, f"name={recipe.stem}", f"runs={path}"])
        for recipe in sorted(suite.glob("*.yaml"))
    }
    if not found:
        raise UserError(f"{suite} has no recipes: name a folder with a .yaml file for each task")
    if data is not None and not any(files_of(config.data) for config in found.values()):
        raise UserError(f"--data {data}: no recipe of {suite} names a file: remove --data")
    choices = {config.encoder.model_dump_json(): config.encoder for config in found.values()}
    resolved = {key: encoders.resolve(choice, Path(RUNS)) for key, choice in choices.items()}
    return {
        task: config.model_copy(
            update={
                "encoder": resolved[config.encoder.model_dump_json()],
                "data": in_folder(config.data, data or Path()),
            }
        )
        for task, config in found.items()
    }


def run_tasks(path: Path, configs: Mapping[str, FinetuneConfig]) -> dict[str, str]:
    """Run the tasks that are not finished; return the errors of those that failed."""
    failed = {}
    for task, config in configs.items():
        if (folder := finished(path, task)) is not None:
            _check_same(folder, config)
            logger.info("%s: finished before", task)
    for number, (task, config) in enumerate(configs.items(), start=1):
        if finished(path, task) is not None:
            continue
        logger.info("task %d of %d: %s", number, len(configs), task)
        try:
            with SignalStop("stopping") as signals:
                finetune(config, [signals, ProgressBar()], stop=signals.received)
        except UserError as error:
            logger.warning("%s failed: %s", task, error)
            failed[task] = str(error)
    return failed


def finished(path: Path, task: str) -> Path | None:
    """Return the run of a task that is finished, if there is one."""
    return max((one.parent for one in path.glob(f"*/{RESULTS}") if _task_of(one.parent) == task), default=None)


def _task_of(run: Path) -> str | None:
    """Return the task that a finished run is of; None, with a warning, for one that cannot be read."""
    try:
        return results.read(run).name
    except UserError as error:
        logger.warning("left out: %s", error)
        return None


def _check_same(folder: Path, config: FinetuneConfig) -> None:
    """Raise a UserError if a run was made by other settings; the commit of a data set may have been looked up."""
    there, here = (
        one.model_dump(mode="json", exclude={"data": {"revision"}})
        for one in (read(FinetuneConfig, folder / checkpoint.CONFIG), config)
    )
    if different := [name for name in here if there[name] != here[name]]:
        raise UserError(f"{folder} was made by another {listed(different)}: choose another --name, or remove it")
