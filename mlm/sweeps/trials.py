"""The folder of a sweep, and the state of its trials, which is that of their runs.

SWEEP/sweep.yaml          the sweep's settings
SWEEP/plan.jsonl          a line for each trial, in the order of their numbers: stage, arm and seed
SWEEP/DATE-0007/          the run of trial 7, as its command makes it
SWEEP/output/0007.log     what its command printed
SWEEP/failed/0007.txt     the last lines of that, if the trial failed
SWEEP/cache/              tokenizers and shards, which the trials share
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from configs import UserError, dump, read
from configs.files import write_text
from mlm.sweeps.arms import Arm, grid, key_of, overrides_of, ranked
from mlm.sweeps.config import CommandName, Mode, SweepConfig
from mlm.tracking import run_directory
from tokenizer.shards.workers import cores_here

CONFIG, PLAN, OUTPUT, FAILED = "sweep.yaml", "plan.jsonl", "output", "failed"
State = Literal["waiting", "running", "unfinished", "finished", "failed"]
EVALUATED = ("heldout", "validation")
"""The side of the data that a command evaluates on while it trains."""
SEED: Mapping[CommandName, str] = {
    "mlm.pretrain": "train.seed={}",
    "finetune.cnn_head": "train.seeds=[{}]",
    "finetune.linear_head": "train.seeds=[{}]",
}
"""The override that sets the seed of a trial, for each command."""


@dataclass(frozen=True)
class Trial:
    """One arm with one seed."""

    number: int
    stage: int
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"{self.number:04}"


_TRIAL = TypeAdapter(Trial)


@dataclass(frozen=True)
class TrialRecord:
    """A trial, and its run as far as there is one."""

    trial: Trial
    state: State
    run: Path | None
    results: Mapping[str, float | None]
    """The numbers in its results.json by their dotted names; empty until it is finished."""
    progress: float
    """Share of its budget that is used."""
    last_lines: str
    """The end of its output, if it failed."""


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep."""

    path: Path
    config: SweepConfig

    def trials(self) -> list[Trial]:
        """Return the trials that are planned so far."""
        path = self.path / PLAN
        if not path.exists():
            return []
        try:
            return [_TRIAL.validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise UserError(f"{path} is damaged: put it back from a copy, or remove the sweep") from error

    def plan(self, stage: int, arms: Iterable[Arm], *, again: bool = True) -> None:
        """Append the trials of the arms: all of them with the first seed, then with the next one.

        Unless `again`, those that are planned already stay as they are.
        """
        trials, new = self.trials(), list(arms)
        there = set() if again else {(one.stage, key_of(one.arm), one.seed) for one in trials}
        for seed in self.config.seeds:
            for arm in new:
                if (stage, key_of(arm), seed) not in there:
                    trials.append(Trial(len(trials), stage, arm, seed))
        write_text(self.path / PLAN, "".join(f"{json.dumps(vars(trial), ensure_ascii=False)}\n" for trial in trials))

    def records(self) -> list[TrialRecord]:
        """Return the state of every trial."""
        return list(map(self.record, self.trials()))

    def record(self, trial: Trial) -> TrialRecord:
        """Return the state of a trial."""
        run, failure = self.run_of(trial), self.path / FAILED / f"{trial.name}.txt"
        if run is None:
            lines = failure.read_text(encoding="utf-8") if failure.exists() else ""
            return TrialRecord(trial, "failed" if lines else "waiting", None, {}, 0.0, lines)
        if (run / run_directory.RESULTS).exists():
            results = dict(numbers(run_directory.read_json(run / run_directory.RESULTS)))
            return TrialRecord(trial, "finished", run, results, 1.0, "")
        train = run_directory.newest_records(run / run_directory.METRICS).get("train", {})
        lines = failure.read_text(encoding="utf-8") if failure.exists() else ""
        state: State = "failed" if lines else "running" if run_directory.owner(run) else "unfinished"
        return TrialRecord(trial, state, run, {}, train.get("progress") or 0.0, lines)

    def run_of(self, trial: Trial) -> Path | None:
        """Return the run of a trial: the finished one if there is one, else the newest; None if there is none."""
        runs = sorted(self.path.glob(f"*_*-{trial.name}")) + sorted(self.path.glob(f"*_*-{trial.name}-[0-9]*"))
        return max(runs, key=lambda run: ((run / run_directory.RESULTS).exists(), run.name), default=None)

    def arguments(self, trial: Trial) -> list[str]:
        """Return the arguments of a trial's command, for a new run."""
        seed = SEED[self.config.command].format(trial.seed)
        return [*self.config.base, *overrides_of(trial.arm), seed, f"name={trial.name}", f"runs={self.path}"]

    def ranked(self, metric: str, mode: Mode, stage: int | None = None) -> list[Arm]:
        """Return the arms, of one stage or of all, that have results, the best first."""
        chosen = (one for one in self.records() if stage in (None, one.trial.stage))
        return ranked(((one.trial.arm, one.trial.seed, one.results.get(metric)) for one in chosen), mode)

    def failures(self) -> list[Trial]:
        """Return the trials that failed."""
        return [record.trial for record in self.records() if record.state == "failed"]

    def has_too_many_failures(self) -> bool:
        """Return True if the sweep is to end."""
        return len(self.failures()) > self.config.most_failures

    def compared_at(self, trial: Trial, step: int) -> float | None:
        """Return halving's metric at the first evaluation of a trial at or beyond a step; None if there is none.

        A loss that is not finite is the worst of all.
        """
        assert self.config.halving is not None
        metric, run = self.config.halving.metric, self.run_of(trial)
        found = [one for one in evaluations(run) if one["step"] >= step] if run else []
        if not found:
            return None
        value = found[0][metric.removeprefix("heldout.")]
        worst = math.inf if self.config.halving.mode == "min" else -math.inf
        return worst if value is None else float(value)

    def promoted(self, trials: Sequence[Trial], steps: int) -> list[Trial]:
        """Return the trials of the arms that halving lets go on after so many steps; none if none was evaluated."""
        halving = self.config.halving
        assert halving is not None
        best = ranked(((one.arm, one.seed, self.compared_at(one, steps)) for one in trials), halving.mode)
        count = len({key_of(trial.arm) for trial in trials})
        kept = set(map(key_of, best[: max(round(count * halving.keep), 1)]))
        return [trial for trial in trials if key_of(trial.arm) in kept]

    def dropped(self) -> set[int]:
        """Return the numbers of the trials that halving has ended before the end of their budget."""
        numbers, planned, halving = set[int](), self.trials(), self.config.halving
        for stage in {trial.stage for trial in planned}:
            trials = [trial for trial in planned if trial.stage == stage]
            for steps in halving.steps if halving else ():
                if self.stopped(trials, steps):
                    break  # the others are still to be compared
                kept = self.promoted(trials, steps)
                numbers |= {trial.number for trial in trials} - {trial.number for trial in kept}
                trials = kept
        return numbers

    def stopped(self, trials: Sequence[Trial], until: int | None) -> list[str]:
        """Return the names of the trials that neither failed nor came to so many steps, or to their end."""
        missing = [one for one in trials if until is None or self.compared_at(one, until) is None]
        return [one.name for one in missing if self.record(one).state not in ("finished", "failed")]


def evaluations(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's evaluations in their order."""
    records = run_directory.records_newest_first(run / run_directory.METRICS)
    return [record for record, _ in records if record["side"] in EVALUATED][::-1]


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Yield the numbers of results.json by their dotted names; of a mean and its deviation, the mean."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            if set(value) == {"mean", "std"}:
                yield f"{prefix}{key}", value["mean"]
            else:
                yield from numbers(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield f"{prefix}{key}", value if value is None or math.isfinite(value) else None


def opened(config: SweepConfig) -> Sweep:
    """Make the folder of a sweep, or open that of the same sweep; a UserError tells another sweep's difference.

    A sweep of which no run was begun, because a setting was wrong, is replaced.
    """
    path = Path(config.runs, config.name).absolute()
    is_new = not (path / CONFIG).exists()
    if not is_new and not _is_begun(path) and not run_directory.owner(path):
        with run_directory.lock(path):
            if is_new := not _is_begun(path):  # still: another one may have had the lock meanwhile
                (path / PLAN).unlink(missing_ok=True)
    if not is_new:
        config = config.model_copy(update={"cores": config.cores or read_sweep(path).config.cores})
        _check_same(Sweep(path, config))
    elif not (path / CONFIG).exists() and path.exists() and any(path.iterdir()):
        raise UserError(f"{path} exists and holds no sweep: choose another name")
    if config.cores is None:  # a step is cut by the number of threads: it stays what it was when the sweep began
        config = config.model_copy(update={"cores": max(len(cores_here()) // config.trials_at_once, 1)})
    path.mkdir(parents=True, exist_ok=True)
    if is_new:
        write_text(path / CONFIG, dump(config))
    return Sweep(path, config)


def _is_begun(path: Path) -> bool:
    """Return whether a sweep has the run of a trial."""
    return any(path.glob("*_*-[0-9]*"))


def read_sweep(path: Path) -> Sweep:
    """Return the sweep in a folder; a UserError says that there is none."""
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} is no sweep: it has no {CONFIG}: name the folder that python -m mlm.sweep made")
    return Sweep(path, read(SweepConfig, path / CONFIG))


def _check_same(sweep: Sweep) -> None:
    """Raise a UserError with the differences if the folder's trials are not those of the sweep, or some of them."""
    there, here = read_sweep(sweep.path).config.lasting(), sweep.config.lasting()
    changed = [name for name in there if there[name] != here[name]]
    if not changed or (_can_grow(sweep.config) and set(changed) <= {"search", "seeds"} and _is_part(sweep)):
        return
    told = "; ".join(
        f"{name} is {json.dumps(_without(there[name], here[name]), ensure_ascii=False)} there,"
        f" {json.dumps(_without(here[name], there[name]), ensure_ascii=False)} here"
        for name in changed
    )
    mend = "choose another name, undo the change, or remove that folder"
    raise UserError(f"{sweep.path} is a sweep by other settings ({told}): {mend}")


def _can_grow(config: SweepConfig) -> bool:
    """Return whether no trial depends on the results of others, so that further ones change none."""
    return config.sampler.kind == "grid" and not config.stages and config.halving is None


def _is_part(sweep: Sweep) -> bool:
    """Return whether every planned trial is one of the sweep's, by its name and by what the name stands for."""
    known = {key_of(arm): overrides_of(arm) for arm in grid(sweep.config.search)}
    trials = sweep.trials()
    return all(known.get(key_of(one.arm)) == overrides_of(one.arm) and one.seed in sweep.config.seeds for one in trials)


def _without(value: Any, other: Any) -> Any:
    """Return the items of a list that the other one lacks; any other value as it is."""
    both = isinstance(value, list) and isinstance(other, list)
    return [item for item in value if item not in other] if both else value
