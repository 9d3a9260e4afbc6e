"""Run trials: each in a process of its own, started here or by Ray Tune."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock
from typing import Any

from configs import UserError
from configs.command import EXIT_SIGNAL
from configs.files import write_text
from mlm.checkpoint import checkpoint
from mlm.checkpoint.interrupt import SIGNALS
from mlm.sweeps.trials import FAILED, OUTPUT, Sweep, Trial, read_sweep
from mlm.tracking import run_directory
from tokenizer.shards.cluster import cluster
from tokenizer.shards.workers import cores_here

_RESUMED = ("mlm.pretrain",)
"""Commands that resume an unfinished run; the others repeat it."""
_TRIES = 5
"""Starts of a trial whose process is killed."""
_STOPPED = (0, *(EXIT_SIGNAL + number for number in SIGNALS))
"""Exit codes of a trial that is finished, or was told to stop."""
_KILL_SECONDS = 60.0
"""Time for a trial to save, after the sweep is told to end."""
_POLL_SECONDS = 0.2
_TELL_SECONDS = 2.0
_LAST_LINES = 12
_PR_SET_PDEATHSIG = 1
"""Number of the option of Linux's prctl that ends a process with its parent."""

Launcher = Callable[[Sweep, Sequence[Trial], int | None, Callable[[Trial], None]], None]
"""Runs trials, to a number of steps or to their end, and calls a function with each one that has ended, failed or not.
An error of that function ends the others here, and is raised at the end by Ray."""


@dataclass
class _Processes:
    """The processes that run now, so that all can be told to end."""

    running: set["subprocess.Popen[bytes]"] = field(default_factory=set)
    ending: bool = False
    lock: Lock = field(default_factory=Lock)

    def start(self, command: Callable[[], "subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes] | None":
        """Start a process that will be told to end; None if the others were told already."""
        with self.lock:
            if self.ending:
                return None
            process = command()
            self.running.add(process)
            return process

    def end(self) -> None:
        """Let every process save and end."""
        with self.lock:
            self.ending = True
        limit = time.monotonic() + _KILL_SECONDS
        try:
            for process in tuple(self.running):
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            for process in tuple(self.running):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(limit - time.monotonic(), 0))
        finally:  # at a second Ctrl-C too
            for process in tuple(self.running):
                process.kill()


def launch_here(sweep: Sweep, trials: Sequence[Trial], until: int | None, has_ended: Callable[[Trial], None]) -> None:
    """Run trials as processes of this machine, `trials_at_once` at a time."""
    config, processes = sweep.config, _Processes()
    slots: SimpleQueue[frozenset[int] | None] = SimpleQueue()
    for cores in shared_cores(config.trials_at_once, _cores(sweep)):
        slots.put(cores)

    def run(trial: Trial) -> Trial:
        cores = slots.get()
        try:
            if not processes.ending:
                execute(sweep, trial, until, cores, processes)
        finally:
            slots.put(cores)
        return trial

    with ThreadPoolExecutor(config.trials_at_once) as threads:
        submitted = [threads.submit(run, trial) for trial in trials]
        try:
            for future in as_completed(submitted):
                has_ended(future.result())
        finally:
            for future in submitted:
                future.cancel()
            processes.end()


def shared_cores(trials_at_once: int, count: int) -> Sequence[frozenset[int] | None]:
    """Return the cores of each of the trials that run at the same time, as far as there are enough.

    None where they leave cores free: the system places them, as another sweep would take the same cores.
    """
    there = cores_here()
    if trials_at_once * count < len(there):
        return [None] * trials_at_once
    places = range(0, trials_at_once * count, count)
    return [frozenset(there[(first + n) % len(there)] for n in range(count)) for first in places]


def _cores(sweep: Sweep) -> int:
    assert sweep.config.cores is not None, "it is set when the folder is made"
    return sweep.config.cores


def launch_by_ray(sweep: Sweep, trials: Sequence[Trial], until: int | None, has_ended: Callable[[Trial], None]) -> None:
    """Let Ray Tune place and run trials, here or on a cluster whose machines share the folder.

    Tune's own state is not used to go on: the runs tell what is missing.
    """
    config = sweep.config
    cores = _cores(sweep)
    with cluster(config.address, None if config.address else config.trials_at_once * cores):
        from ray import tune

        # Tune would return from an interruption as from a finished search.
        quiet = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
        os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", **quiet}
        trainable: Any = tune.with_resources(partial(_in_tune, str(sweep.path), str(Path.cwd()), until), {"cpu": cores})
        tuner = tune.Tuner(
            trainable,
            param_space={"number": tune.grid_search([trial.number for trial in trials])},
            tune_config=tune.TuneConfig(max_concurrent_trials=config.trials_at_once),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(sweep.path / ".ray"),
                failure_config=tune.FailureConfig(max_failures=_TRIES),
                verbose=0,
            ),
        )
        _tell_while(tuner.fit, sweep, trials, has_ended)
    shutil.rmtree(sweep.path / ".ray", ignore_errors=True)


def _tell_while(
    run: Callable[[], Any], sweep: Sweep, trials: Sequence[Trial], has_ended: Callable[[Trial], None]
) -> None:
    """Call `run`, and `has_ended` with each trial as soon as its folder tells so; Tune tells only through pickles."""
    done, told, errors = Event(), set[int](), list[UserError]()

    def tell() -> None:
        while not done.wait(_TELL_SECONDS):
            for trial in trials:
                if trial.number not in told and sweep.record(trial).state in ("finished", "failed"):
                    told.add(trial.number)
                    try:
                        has_ended(trial)
                    except UserError as error:
                        errors.append(error)

    with ThreadPoolExecutor(1) as thread:
        telling = thread.submit(tell)
        try:
            run()
        finally:
            done.set()
    telling.result()
    if errors:
        raise errors[0]
    for trial in trials:
        if trial.number not in told:
            has_ended(trial)


def _in_tune(path: str, working_directory: str, until: int | None, settings: dict[str, Any]) -> None:
    """Run one trial in a worker of Ray."""
    os.chdir(working_directory)  # Tune has a folder of its own for each trial
    sweep = read_sweep(Path(path))
    if sweep.has_too_many_failures():
        return  # the sweep ends
    execute(sweep, sweep.trials()[settings["number"]], until, None, _Processes())


LAUNCHERS: dict[str, Launcher] = {"local": launch_here, "ray": launch_by_ray}


def execute(
    sweep: Sweep, trial: Trial, until: int | None, affinity: frozenset[int] | None, processes: _Processes
) -> None:
    """Run a trial's command to its end; write the last lines of its output if it fails."""
    threads = str(_cores(sweep))
    process_control = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # not to be looked up in a fork
    failure, output = sweep.path / FAILED / f"{trial.name}.txt", sweep.path / OUTPUT / f"{trial.name}.log"
    for folder in (failure.parent, output.parent):
        folder.mkdir(exist_ok=True)
    failure.unlink(missing_ok=True)
    for _ in range(_TRIES):
        arguments = next_arguments(sweep, trial, until)
        if arguments is None:
            return
        with output.open("ab") as file:
            command: partial[subprocess.Popen[bytes]] = partial(
                subprocess.Popen,
                [sys.executable, "-m", sweep.config.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                preexec_fn=partial(_begin, affinity, os.getpid(), process_control),
                start_new_session=True,  # Ctrl-C is for the sweep to act on
            )
            process = processes.start(command)
        if process is None:
            return
        code = process.wait()
        processes.running.discard(process)
        if code in _STOPPED or processes.ending:
            return
        if code > 0:
            break
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    write_text(failure, "\n".join(lines or [f"ended with code {code}, without a word"]) + "\n")


def next_arguments(sweep: Sweep, trial: Trial, until: int | None) -> list[str] | None:
    """Return the arguments that start or resume a trial; None if it is done."""
    run = sweep.run_of(trial)
    while run and run_directory.owner(run):  # a process of a sweep that was killed: it saves and ends
        time.sleep(_POLL_SECONDS)
    # A process that was killed may have logged the step without its evaluation.
    if sweep.record(trial).state == "finished" or (until is not None and sweep.compared_at(trial, until) is not None):
        return None
    pause = [] if until is None else ["--until", str(until)]
    # Of checkpoints that are damaged or elsewhere the command itself tells: hours of training are not removed for them.
    if run and sweep.config.command in _RESUMED and any((run / checkpoint.CHECKPOINTS).glob(checkpoint.NAMES)):
        return ["--resume", str(run), *pause]
    if run:
        shutil.rmtree(run)
    return [*sweep.arguments(trial), *pause]


def _begin(affinity: frozenset[int] | None, parent: int, process_control: Callable[[int, int], int] | None) -> None:
    """Give a new process its cores, and let it save and end when its parent dies; runs in that process."""
    if affinity is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, affinity)
    if process_control is not None:
        process_control(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before
            os._exit(1)
