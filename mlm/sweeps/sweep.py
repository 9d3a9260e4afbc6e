"""A sweep as a function: plan the arms, run their trials, and go on from the best ones stage by stage."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs import UserError, dump, listed
from configs.extras import require
from configs.files import write_text
from configs.streams import messages
from mlm.sweeps import arms
from mlm.sweeps.arms import Arm
from mlm.sweeps.check import check
from mlm.sweeps.config import Grid, Halving, Random, Stage, SweepConfig
from mlm.sweeps.launchers import LAUNCHERS
from mlm.sweeps.trials import CONFIG, FAILED, PLAN, Sweep, Trial, TrialRecord, opened, read_sweep
from mlm.tracking import run_directory

logger = logging.getLogger(__name__)

CLASSIFIED = (
    *("accuracy", "f1", "f1_macro", "f1_weighted", "mcc", "precision", "recall", "roc_auc"),
    *("pearson", "spearman", "loss"),
)  # of texts; the last three of numbers
METRICS = {
    "mlm.pretrain": (
        ("heldout.", ("loss", "accuracy", "bits_per_byte", "complete_bits_per_byte", "bits_per_sentence")),
        ("pairs.", ("accuracy", "accuracy_within_words")),
        ("", ("steps", "tokens", "words", "epochs", "seconds", "tokens_per_second")),
    ),
    **dict.fromkeys(
        ("finetune.cnn_head", "finetune.linear_head"),
        (*((f"{part}.", CLASSIFIED) for part in ("validation", "test", "control")), ("", ("seconds",))),
    ),
}
"""The numbers that each command writes into results.json; those of several corpora have further ones."""
_OF_CORPUS = "corpora."


def sweep(config: SweepConfig) -> Path:
    """Run a sweep, or what is missing of it, and return its folder.

    Raises:
        UserError: a setting is wrong, or more than `most_failures` trials failed.
        KeyboardInterrupt: the sweep was interrupted; its trials were told to save.
    """
    checked(config)
    found = opened(config)
    with run_directory.lock(found.path):
        begun = read_sweep(found.path).config
        if config.sampler.kind != "optuna":
            planned = sum(trial.stage == 0 for trial in found.trials())
            if 0 < planned < len(first_arms(begun)) * len(begun.seeds):
                raise UserError(f"{found.path / PLAN} is damaged, trials are missing: put it back, or remove the sweep")
            found.plan(0, first_arms(config), again=False)
        write_text(found.path / CONFIG, dump(found.config))  # what may change from one start to the next
        if config.sampler.kind == "optuna":
            _run_proposed(found)
        else:
            _run_stage(found, 0)
        for number, stage in enumerate(config.stages, start=1):
            if number > max(trial.stage for trial in found.trials()):
                found.plan(number, next_arms(found, number, stage))
            _run_stage(found, number)
    return found.path


def checked(config: SweepConfig) -> None:
    """Raise a UserError for a setting that the swept command refuses, or a metric that it does not write."""
    if not config.search:
        raise UserError("search names no setting: write one, as search: {optim.lr: [1e-3, 1e-4]}")
    if options := [word for word in config.base if word.startswith("-")]:
        raise UserError(f"{options[0]} is an option, and a trial takes a recipe and section.key=value alone: remove it")
    if config.launcher == "ray":
        require("ray", extra="sweep", purpose="launcher=ray")
    if config.sampler.kind == "optuna":
        require("optuna", extra="sweep", purpose="sampler.kind=optuna")
    _check_metrics(config)
    first = arms.ends(config.search) if config.sampler.kind == "optuna" else first_arms(config)
    tried, possible, before = [*first], [*first], first
    for stage in config.stages:
        further = arms.grid(stage.search)
        tried += [{**first[0], **arm} for arm in further]
        before = [{**one, **arm} for one in before for arm in further]
        possible += before
    _check_stages(config)
    for name, arm in _named_arms(config).items():
        if arms.key_of(arm) not in map(arms.key_of, possible):
            raise UserError(f"{name} = {arms.full(arm)} is no arm; there are: {listed(map(arms.full, possible), 12)}")
    probe = Sweep(Path(config.runs, config.name), config)
    calls = [probe.arguments(Trial(0, 0, arm, config.seeds[0])) for arm in tried]
    for arm, found in zip(tried, check(config.command, calls), strict=True):
        error = found.get("error") or (config.halving and _halving_error(config.halving, found["config"]["train"]))
        if error:
            raise UserError(f"{config.command} with {arms.label(arm)}: {error}")


def _named_arms(config: SweepConfig) -> dict[str, Arm]:
    named: dict[str, Arm] = {} if config.baseline is None else {"baseline": config.baseline}
    if config.hypothesis is not None:
        named |= {"hypothesis.better": config.hypothesis.better, "hypothesis.than": config.hypothesis.than}
    return named


def _check_metrics(config: SweepConfig) -> None:
    known = [f"{prefix}{name}" for prefix, names in METRICS[config.command] for name in names]
    for metric in _metrics(config):
        if metric not in known and not metric.startswith(("heldout.loss/", _OF_CORPUS)):
            raise UserError(f"{config.command} does not write {metric}: it writes {', '.join(known)}")


def _halving_error(halving: Halving, train: Mapping[str, Any]) -> str | None:
    """Return why a trial with such settings of training cannot be compared at these steps; None if it can."""
    budget, every = train["budget"], train["intervals"]["evaluate_steps"]
    if budget["kind"] == "steps" and halving.steps[-1] >= budget["steps"]:
        return f"halving.steps = {halving.steps[-1]} is not before its end at step {budget['steps']}: lower it"
    if odd := [step for step in halving.steps if step % every]:
        return f"halving.steps = {odd[0]} is between evaluations: set train.intervals.evaluate_steps to a divisor of it"
    return None


def _check_stages(config: SweepConfig) -> None:
    there = len(first_arms(config)) if isinstance(config.sampler, Grid) else config.sampler.arms
    for number, stage in enumerate(config.stages, start=1):
        for take in stage.take:
            if take.count > there:
                raise UserError(f"stage {number} takes {take.count} arms, and the stage before has {there}: take fewer")
        there = sum(take.count for take in stage.take) * len(arms.grid(stage.search))


def first_arms(config: SweepConfig) -> list[Arm]:
    """Return the arms of the first stage, as far as they do not depend on results."""
    return arms.draw(config.search, config.sampler) if isinstance(config.sampler, Random) else arms.grid(config.search)


def next_arms(found: Sweep, number: int, stage: Stage) -> list[Arm]:
    """Return the arms of a stage: the best ones of the stage before, each with every further value."""
    taken: dict[str, Arm] = {}
    for take in stage.take:
        best = found.ranked(take.metric, take.mode, number - 1)[: take.count]
        taken |= {arms.key_of(arm): arm for arm in best}
    if not taken:
        raise UserError(f"stage {number} has nothing to go on from: no trial of the stage before has a result")
    combined = [{**arm, **further} for arm in taken.values() for further in arms.grid(stage.search)]
    return list({arms.key_of(arm): arm for arm in combined}.values())


def _run_proposed(found: Sweep) -> None:
    """Run the arms that Optuna proposes, some at a time."""
    config = found.config
    assert config.sampler.kind == "optuna"
    _run_stage(found, 0)
    while True:
        records = [record for record in found.records() if record.trial.stage == 0]
        known = _means(records, config.metric)
        left = config.sampler.arms - len(known)
        if left <= 0:
            return
        count = min(left, config.sampler.at_once)
        planned = len(found.trials())
        found.plan(0, arms.propose(config.search, config.sampler, config.mode, known, count))
        _run_to_end(found, found.trials()[planned:])  # failed trials before are tried again by the next start only


def _means(records: Sequence[TrialRecord], metric: str) -> list[tuple[Arm, float | None]]:
    """Return each arm, in the order of the trials, with the mean of its results; None for one without any."""
    groups: dict[tuple[str, int], list[TrialRecord]] = {}
    repeats: dict[tuple[str, int], int] = {}
    for record in records:
        key = (arms.key_of(record.trial.arm), record.trial.seed)
        repeats[key] = repeats.get(key, -1) + 1  # Optuna may propose an arm again
        groups.setdefault((key[0], repeats[key]), []).append(record)
    found: list[tuple[Arm, float | None]] = []
    for group in groups.values():
        values = [value for record in group if (value := record.results.get(metric)) is not None]
        found.append((group[0].trial.arm, statistics.fmean(values) if values else None))
    return found


def _run_stage(found: Sweep, stage: int) -> None:
    """Run the trials of a stage; with halving, the best arms alone to their end."""
    trials = [trial for trial in found.trials() if trial.stage == stage]
    halving = found.config.halving
    for steps in halving.steps if halving else ():
        _run(found, trials, steps)
        _check_none_stopped(found, trials, steps)
        trials = found.promoted(trials, steps)
        if not trials:
            raise UserError(
                f"no trial was evaluated at step {steps} or later: lower halving.steps, or see {found.path}"
            )
    _run_to_end(found, trials)


def _run_to_end(found: Sweep, trials: Sequence[Trial]) -> None:
    """Run trials to their end; a UserError tells those that were stopped: what comes next would build on less."""
    _run(found, trials, None)
    _check_none_stopped(found, trials, None)
    _check_written(_metrics(found.config), [found.record(trial) for trial in trials])


def _check_none_stopped(found: Sweep, trials: Sequence[Trial], until: int | None) -> None:
    if stopped := found.stopped(trials, until):
        raise UserError(f"trials were stopped ({listed(stopped)}): the same command goes on with them")


def _run(found: Sweep, trials: Sequence[Trial], until: int | None) -> None:
    """Run the trials that are not done, and show the progress and the best result so far."""
    config = found.config
    records = [found.record(trial) for trial in trials]
    of_every_trial = [one for one in _metrics(config) if not one.startswith(_OF_CORPUS)]  # of a corpus, of some arms
    for record in records:
        _check_written(of_every_trial, [record])
    waiting = [record.trial for record in records if record.state != "finished"]
    if not waiting:
        return
    for trial in waiting:  # they are tried again
        (found.path / FAILED / f"{trial.name}.txt").unlink(missing_ok=True)
    shown = tqdm(
        total=len(trials), initial=len(trials) - len(waiting), desc=config.name, unit=" trials", file=messages()
    )

    def has_ended(trial: Trial) -> None:
        record = found.record(trial)
        shown.update()
        best = found.ranked(config.metric, config.mode)[:1]
        shown.set_postfix_str(f"best {arms.label(best[0])}" if best else "")
        if record.last_lines:
            last = record.last_lines.splitlines()[-1]
            logger.warning("\ntrial %s (%s) failed: %s", trial.name, arms.label(trial.arm), last)
        _check_written(of_every_trial, [record])
        if found.has_too_many_failures():
            failed = [one.name for one in found.failures()]
            raise UserError(
                f"{len(failed)} trials failed ({listed(failed)}), and most_failures is {config.most_failures}: see"
                f" {found.path / 'failed'}; the command started again runs what is missing"
            )

    with shown:
        LAUNCHERS[config.launcher](found, waiting, until, has_ended)


def _metrics(config: SweepConfig) -> list[str]:
    return [config.metric, *(take.metric for stage in config.stages for take in stage.take)]


def _check_written(metrics: Sequence[str], records: Sequence[TrialRecord]) -> None:
    """Raise a UserError if none of the finished trials has a metric, as `test.accuracy` without a test set."""
    finished = [one for one in records if one.state == "finished"]
    for metric in metrics:
        if finished and not any(metric in one.results for one in finished):
            names = listed(f"trial {one.trial.name}" for one in finished)
            written = listed(dict.fromkeys(name for one in finished for name in one.results), 30)
            raise UserError(f"{names} wrote no {metric}; there are {written}: name one as metric")
