import contextlib
import importlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import UserError, dump, read, recipes
from finetune.evaluation.results import read as read_results
from mlm import status
from mlm import sweep as command
from mlm.config import PretrainConfig
from mlm.model.heads import MaskedLanguageModel
from mlm.sweeps import arms, launchers
from mlm.sweeps.check import check
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.sweep import METRICS, checked, next_arms, sweep
from mlm.sweeps.trials import Sweep, Trial, numbers, opened, read_sweep
from mlm.tracking import run_directory
from tests import processes
from tests.finetune.samples import write_csv
from tests.mlm.runs import TINY
from tests.mlm.sweeps.samples import csv_of, finish, swept
from tests.tokenizer.samples import prose, write_lines

BASE = (*TINY, "train.budget.steps=20", "tracking=[]")
RATES = {"optim.lr": ("3e-3", "1e-9")}
ACTIVATIONS = {"model.encoder.activation": ("relu", "swish")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_lines(tmp_path / "corpus.txt", prose(300))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(**settings: Any) -> SweepConfig:
    return SweepConfig.model_validate({"base": BASE, "search": ACTIVATIONS, **settings}, strict=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_lines(folder / "corpus.txt", prose(300))
    with contextlib.chdir(folder):
        return sweep(config_of(name="undisturbed", search=RATES, trials_at_once=2)).resolve()


def sweep_in_process(name: str, **settings: Any) -> list[str]:
    values = {"name": name, "base": BASE, "search": RATES, "trials_at_once": 2, **settings}
    Path(f"{name}.yaml").write_text(json.dumps(values))
    return [sys.executable, "-m", "mlm.sweep", f"{name}.yaml"]


def test_a_sweep_that_is_killed_ends_with_the_same_table_and_repeats_no_finished_trial(
    folder: Path, undisturbed: Path
) -> None:
    words = sweep_in_process("killed")
    path = folder / "runs" / "sweeps" / "killed"
    process = processes.start(words, stdout=-3, stderr=-3)
    until = time.monotonic() + processes.TIMEOUT_SECONDS
    while not list(path.glob("*/results.json")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished, *_ = path.glob("*/results.json")
    before = finished.stat().st_mtime_ns
    done = processes.run(words)
    assert done.returncode == 0, done.stderr
    assert finished.stat().st_mtime_ns == before
    assert csv_of(path) == csv_of(undisturbed)
    assert len(csv_of(path).splitlines()) == 3
    runs = [record.run for record in read_sweep(path).records()]
    assert len({json.loads((run / "results.json").read_text())["weights_sha256"] for run in runs if run}) == 2
    assert len(list((path / "cache").glob("tokenizer-*"))) <= 1


def test_halving_runs_the_best_arms_alone_to_their_end(
    folder: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halving = {"steps": [10], "keep": 0.5}
    path = sweep(config_of(name="halved", search=RATES, halving=halving, trials_at_once=2))
    found = read_sweep(path)
    states = {record.trial.arm["optim.lr"]: (record.state, record.progress) for record in found.records()}
    assert states == {"3e-3": ("finished", 1.0), "1e-9": ("unfinished", 0.5)}
    paused, straight = (
        json.loads((record.run / "results.json").read_text())
        for record in (found.records()[0], read_sweep(undisturbed).records()[0])
        if record.run
    )
    assert paused["weights_sha256"] == straight["weights_sha256"]
    known = set(METRICS["mlm.pretrain"][0][1]) | {"steps", "tokens", "seconds", "tokens_per_second"}
    assert known <= {name.removeprefix("heldout.") for name, _ in numbers(straight)}
    status.main([str(path)])
    shown = capsys.readouterr().out
    assert "halved: finished, 1 of 2 trials finished" in shown
    assert " dropped " in shown
    assert "best so far: lr=3e-3" in shown


def test_a_failed_trial_tells_its_last_lines_and_too_many_end_the_sweep(folder: Path) -> None:
    search = {"text.source.paths": ("corpus.txt", "none.txt")}
    with pytest.raises(UserError, match=r"1 trials failed \(0001\), and most_failures is 0"):
        sweep(config_of(name="failing", search=search, most_failures=0, seeds=[3]))
    good, bad = read_sweep(folder / "runs" / "sweeps" / "failing").records()
    assert (good.state, bad.state) == ("finished", "failed")
    assert bad.last_lines.splitlines()[-1].partition("none.txt: ")[2].startswith("no such file")
    write_lines(folder / "none.txt", prose(300, seed=5))
    path = sweep(config_of(name="failing", search=search, most_failures=0, seeds=[3]))
    assert [record.state for record in read_sweep(path).records()] == ["finished", "finished"]


def test_a_trial_that_is_told_to_stop_has_not_failed_and_goes_on_later(folder: Path) -> None:
    words = sweep_in_process("stopped", search={"optim.lr": ["3e-3"]}, base=(*BASE, "train.budget.steps=2000"))
    path = folder / "runs" / "sweeps" / "stopped"
    process = processes.start(words, stdout=-3, stderr=subprocess.PIPE)
    until = time.monotonic() + processes.TIMEOUT_SECONDS
    while not list(path.glob("*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    (run,) = path.glob("*-0000")
    owner = run_directory.owner(run)
    assert owner is not None
    os.kill(int(re.findall(r"\d+", owner)[0]), signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 2, said
    assert "error: trials were stopped (0000): the same command goes on with them" in said
    found = read_sweep(path)
    (record,) = found.records()
    assert (record.state, record.last_lines) == ("unfinished", "")
    assert launchers.next_arguments(found, record.trial, None) == ["--resume", str(run)]


def test_a_sweep_that_is_told_to_end_lets_its_trials_save(folder: Path) -> None:
    words = sweep_in_process("ended", search={"optim.lr": ["3e-3"]}, base=(*BASE, "train.budget.steps=2000"))
    path = folder / "runs" / "sweeps" / "ended"
    process = processes.start(words, stdout=-3, stderr=subprocess.PIPE)
    until = time.monotonic() + processes.TIMEOUT_SECONDS
    while (
        not any('"side": "train"' in one.read_text() for one in path.glob("*/metrics.jsonl"))
        and time.monotonic() < until
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = processes.finish(process).stderr
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "interrupted: the same command goes on with what the trials have saved" in said
    (run,) = path.glob("*-0000")
    assert run_directory.owner(run) is None
    assert "is saved; resume: " in (path / "output" / "0000.log").read_text()


def test_a_sweep_is_not_started_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without torchrun"):
        command.main(["laptop"])


def test_a_trial_whose_checkpoints_are_damaged_is_left_as_it_is(tmp_path: Path) -> None:
    found = swept(tmp_path, lambda _: {"loss": 1.0}, search={"optim.lr": ["1"]})
    (trial,) = found.trials()
    (run,) = found.path.glob(f"*-{trial.name}")
    (run / "results.json").unlink()
    saved = run / "checkpoints" / "step-000000010"
    saved.mkdir(parents=True)
    assert launchers.next_arguments(found, trial, None) == ["--resume", str(run)]
    assert saved.is_dir()


def by_loss(losses: Mapping[str, float]) -> Any:
    return lambda trial: {"loss": losses[trial.arm["a"]] + trial.seed / 100, "accuracy": losses[trial.arm["a"]]}


def test_a_stage_goes_on_from_the_best_arms_by_each_metric(tmp_path: Path) -> None:
    take = [{"metric": "heldout.loss", "mode": "min", "count": 2}]
    take.append({"metric": "heldout.accuracy", "mode": "max", "count": 1})
    stages = [{"take": take, "search": {"b": ["1", "2"]}}]
    losses = {"w": 1.0, "x": 3.0, "y": 2.0, "z": 4.0}
    found = swept(tmp_path, by_loss(losses), search={"a": tuple(losses)}, seeds=[0, 1], stages=stages)
    expected = [{"a": a, "b": b} for a in "wyz" for b in "12"]
    assert next_arms(found, 1, found.config.stages[0]) == expected
    found.plan(1, expected)
    later = [trial for trial in found.trials() if trial.stage == 1]
    assert [trial.number for trial in later] == list(range(8, 20))
    assert [trial.seed for trial in later] == [0] * 6 + [1] * 6
    finish(found, later[0], {"loss": 0.5})
    assert found.record(later[0]).results["heldout.loss"] == 0.5
    assert found.run_of(Trial(1, 0, {}, 0)) != found.run_of(Trial(11, 0, {}, 0))


def test_the_command_itself_checks_every_value(folder: Path) -> None:
    found = check(
        "mlm.pretrain",
        [
            [*BASE, "model.encoder.activatoin=relu"],
            [*BASE, "optim.lr=fast"],
            [*BASE, "optim.betas=[0.9]"],
            [*BASE, "optim.lr=1e-3"],
        ],
    )
    expected = [
        "did you mean model.encoder.activation",
        "optim.lr = 'fast': input should be a valid number",
        "optim.betas",
    ]
    *wrong, right = found
    for answer, part in zip(wrong, expected, strict=True):
        assert set(answer) == {"error"}
        assert part in answer["error"]
    assert right["config"]["optim"]["lr"] == 1e-3
    with pytest.raises(UserError, match=r"mlm\.pretrain with lr=fast: optim\.lr = 'fast'"):
        checked(config_of(search={"optim.lr": ["fast"]}))
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serch.x=[1]"], "did you mean search"),
        (["search.x={low: 2, high: 1}"], "the range from 2 to 1 is empty"),
        (["search.x={low: 2, hihg: 3}"], "unknown key search.x.hihg: did you mean search.x.high"),
        (["search.x=[]"], "search.x = []: list should have at least 1 item, not 0"),
        (["search.x=3"], "search.x = '3': input should be a list, such as [a, b]"),
        (["search.x={low: 0, high: 1, log: true}", "sampler.kind=random"], "low = 0 has no logarithm"),
        (["search.x={low: 0, high: 1}"], "x is a range: list its values, or set sampler.kind"),
        (["search={train.seed: [1, 2]}"], "train.seed is no setting to search: name the seeds"),
        (["seeds=[1, 1]"], "a seed is there twice"),
        (["search={train: [[train.seed=1], [train.seed=2]]}"], "train.seed is no setting to search: name the seeds"),
        (["search={train: {a: [train.seed=1], b: [x=2]}}"], "train.seed is no setting to search: name the seeds"),
        (["search={x: {a: [x=1], ' ': [x=2]}}"], "' ' is no name of a list: it is one line of words"),
        (["search={x: {a  b: [x=1]}}"], "'a  b' is no name of a list"),
        (["search={x: {a: [x=1], b: [x]}}"], "b is no list of section.key=value texts"),
        (["search={x: {a: [x=1], b: [x=1]}}"], "a and b are the same overrides: remove one"),
        (
            ["search={x: {a: [optim.lr=1], 64: [optim.lr=2]}}", "baseline={x: 65}"],
            "baseline = x=65 is no arm; there are: model.encoder.activation=relu, x=a",
        ),
        (["search={trial: {a: [x=1], b: [x=2]}}"], "trial is a column of its own in the report: call the lists"),
        (["search={runs: [a, b]}"], "runs is no setting to search: the sweep names its runs"),
        (
            ["stages=[{take: [{metric: heldout.loss, mode: min, count: 1}], search: {train.seed: [1]}}]"],
            "train.seed is no setting to search: name the seeds",
        ),
        (
            ["sampler={kind: random, arms: 2}", "baseline={a: b}"],
            "baseline = a=b is no arm; there are: model.encoder.activation=",
        ),
        (["sampler={kind: random, arms: 3}"], "search has only 2 combinations"),
        (["metric=heldout.accuracy"], "heldout.accuracy is better the higher: set mode=max"),
        (["base=[study, --dry-run]"], "--dry-run is an option, and a trial takes a recipe and section.key=value alone"),
        (
            ["sampler={kind: optuna}", "baseline={model.encoder.activation: relu}"],
            "baseline and hypothesis name listed arms, and Optuna proposes its own: remove them",
        ),
        (["metric=accuracy"], "mlm.pretrain does not write accuracy: it writes heldout.loss, heldout.accuracy"),
        (["hypothesis=relu"], "hypothesis = 'relu': input should be a section, such as {key: value}"),
        (["metric=heldout.bits"], "mlm.pretrain does not write heldout.bits: it writes heldout.loss, heldout.accuracy"),
        (["command=mlm.evaluate"], "command"),
        (["command=finetune.cnn_head", "halving={steps: [10]}"], "finetune.cnn_head does not resume"),
        (["halving={steps: [10, 10]}"], "halving.steps must ascend"),
        (["halving={steps: [10, 20]}"], "activation=relu: halving.steps = 20 is not before its end at step 20"),
        (["halving={steps: [11]}"], "halving.steps = 11 is between evaluations: set train.intervals.evaluate_steps"),
        (["address=127.0.0.1:1"], "address is of Ray: set launcher=ray"),
        (
            ["stages=[{take: [{metric: heldout.loss, mode: min, count: 3}], search: {optim.lr: [1]}}]"],
            "stage 1 takes 3 arms, and the stage before has 2",
        ),
        (
            [
                "stages=[{take: [{metric: heldout.loss, mode: min, count: 1}], search: {optim.lr: [1, 2]}}]",
                "baseline={model.encoder.activation: relu, optim.lr: 3}",
            ],
            "optim.lr=3 is no arm; there are: model.encoder.activation=relu",
        ),
        (
            [
                "stages=[{take: [{metric: heldout.loss, mode: min, count: 1}], search: {optim.lr: [1, 2]}},"
                " {take: [{metric: heldout.loss, mode: min, count: 1}], search: {optim.weight_decay: [0.1]}}]",
                "baseline={model.encoder.activation: relu, optim.weight_decay: 0.1}",
            ],
            "relu, optim.weight_decay=0.1 is no arm; there are: model.encoder.activation=relu",
        ),
        (
            ["baseline={model.encoder.activation: gelu}"],
            "activation=gelu is no arm; there are: model.encoder.activation=relu",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_starts(folder: Path, words: list[str], message: str) -> None:
    (folder / "s.yaml").write_text(json.dumps({"base": BASE, "search": ACTIVATIONS}))
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        command.main(["s.yaml", *words])
    assert not (folder / "runs").exists()


def test_words_behind_two_dashes_are_further_ones_of_the_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "s.yaml").write_text(json.dumps({"base": BASE, "search": ACTIVATIONS}))
    command.main(["s.yaml", "--dry-run", "seeds=[1]", "--", "train.budget.steps=30"])
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["activation=relu", "activation=swish"]
    assert "2 trials: 2 arms by 1 seeds\n" in shown.err
    with pytest.raises(UserError, match=r"did you mean train\.budget"):
        command.main(["s.yaml", "--dry-run", "--", "train.budgett.steps=30"])


def test_trials_that_leave_cores_free_are_not_bound_to_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "cores_here", lambda: [2, 3, 5, 7])
    assert launchers.shared_cores(1, 1) == [None]
    assert launchers.shared_cores(3, 1) == [None] * 3
    assert launchers.shared_cores(2, 2) == [frozenset((2, 3)), frozenset((5, 7))]


def test_a_sweep_without_a_search_is_refused() -> None:
    with pytest.raises(UserError, match="search names no setting"):
        checked(config_of(search={}))


def test_a_folder_of_another_sweep_is_refused_with_the_difference(tmp_path: Path) -> None:
    found = swept(tmp_path, lambda _: {"loss": 1.0}, search={"a": ["1"]}, base=["x=1", "y=1"])
    for changes, message in (
        ({"seeds": [1]}, r"seeds is \[0\] there, \[1\] here"),
        ({"base": ["x=1", "y=2", "z=1"]}, r'base is \["y=1"\] there, \["y=2", "z=1"\] here'),
        ({"seeds": [0, 1], "halving": {"steps": [5]}}, r"seeds is \[\] there, \[1\] here; halving is null there"),
    ):
        with pytest.raises(UserError, match=message):
            sweep_again(found, **changes)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(UserError, match="exists and holds no sweep"):
        sweep_again(found, name="taken")
    with pytest.raises(UserError, match=r"no sweep: it has no sweep\.yaml"):
        read_sweep(tmp_path)
    assert sweep_again(found, trials_at_once=2).path == found.path


def test_an_undecided_sweep_takes_further_seeds_and_arms_and_repeats_nothing(folder: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, folder / "runs" / "sweeps" / "grown")
    (folder / "runs" / "sweeps" / "grown" / "sweep.yaml").write_text(dump(config_of(name="grown", search=RATES)))
    before = {record.run: record.run.stat().st_mtime_ns for record in read_sweep(undisturbed).records() if record.run}
    found = read_sweep(sweep(config_of(name="grown", search={"optim.lr": ("3e-3", "1e-9", "1e-3")})))
    assert [(one.arm["optim.lr"], one.seed) for one in found.trials()] == [("3e-3", 0), ("1e-9", 0), ("1e-3", 0)]
    assert [record.state for record in found.records()] == ["finished"] * 3
    assert {path.name for path in before} < {record.run.name for record in found.records() if record.run}
    more = opened(found.config.model_copy(update={"seeds": (0, 1)}))
    more.plan(0, arms.grid(more.config.search), again=False)
    assert [one.seed for one in more.trials()] == [0, 0, 0, 1, 1, 1]
    assert [record.state for record in more.records()] == ["finished"] * 3 + ["waiting"] * 3


def test_other_overrides_by_the_same_name_are_another_sweep(tmp_path: Path) -> None:
    found = swept(tmp_path, lambda _: {"loss": 1.0}, search={"shape": {"wide": ["x=1"], "deep": ["y=1"]}})
    with pytest.raises(UserError, match="is a sweep by other settings"):
        sweep_again(found, search={"shape": {"wide": ["x=2"], "deep": ["y=1"]}})
    with pytest.raises(UserError, match="is a sweep by other settings"):  # else each would get the other's results
        sweep_again(found, search={"shape": {"wide": ["y=1"], "deep": ["x=1"]}})
    assert sweep_again(found, search={"shape": {"wide": ["x=1"], "deep": ["y=1"], "flat": ["z=1"]}}).path == found.path


def test_a_sweep_of_which_no_run_was_begun_is_replaced(tmp_path: Path) -> None:
    config = SweepConfig.model_validate({"runs": str(tmp_path), "search": {"a": ["1"]}}, strict=False)
    opened(config).plan(0, arms.grid(config.search))
    other = config.model_copy(update={"seeds": (3, 4)})
    replaced = opened(other)
    replaced.plan(0, arms.grid(other.search))
    assert [one.seed for one in read_sweep(replaced.path).trials()] == [3, 4]
    with run_directory.lock(replaced.path), pytest.raises(UserError, match=r"seeds is \[3, 4\] there, \[0\] here"):
        opened(config)


def sweep_again(found: Sweep, **changes: Any) -> Sweep:
    return opened(SweepConfig.model_validate({**found.config.model_dump(), **changes}, strict=False))


def test_a_trial_that_was_killed_before_its_evaluation_is_not_compared(tmp_path: Path) -> None:
    settings = {"search": {"optim.lr": ["1", "2"]}, "halving": {"steps": [10]}}
    found = swept(tmp_path, lambda _: {"loss": 1.0}, **settings)
    first, second = found.trials()
    for results in found.path.glob("*/results.json"):
        results.unlink()
    (metrics,) = found.path.glob(f"*-{second.name}/metrics.jsonl")
    metrics.write_text('{"side": "train", "step": 10, "loss": 1.0}\n')
    assert launchers.next_arguments(found, first, 10) is None
    assert launchers.next_arguments(found, second, 10) == [*found.arguments(second), "--until", "10"]


def test_a_loss_that_is_not_finite_is_the_worst_at_a_rung_and_no_reason_to_train_again(tmp_path: Path) -> None:
    settings = {"search": {"optim.lr": ["1", "2"]}, "halving": {"steps": [10]}}
    found = swept(tmp_path, lambda _: {"loss": 1.0}, **settings)
    for trial, loss in zip(found.trials(), ("null", "5.0"), strict=True):
        (metrics,) = found.path.glob(f"*-{trial.name}/metrics.jsonl")
        metrics.write_text(f'{{"side": "heldout", "step": 10, "loss": {loss}}}\n')
        (metrics.parent / "results.json").unlink()
    assert [found.compared_at(trial, 10) for trial in found.trials()] == [math.inf, 5.0]
    assert [trial.number for trial in found.promoted(found.trials(), 10)] == [1]
    assert found.dropped() == {0}
    assert launchers.next_arguments(found, found.trials()[0], 10) is None


def test_a_trial_that_was_stopped_before_a_rung_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"search": {"optim.lr": ["1", "2"]}, "halving": {"steps": [10]}, "base": TINY}
    found = swept(tmp_path, lambda _: {"loss": 1.0}, **settings)
    (stopped,) = found.path.glob(f"*-{found.trials()[0].name}")
    (stopped / "results.json").unlink()
    (stopped / "metrics.jsonl").write_text('{"side": "train", "step": 7, "loss": 1.0, "progress": 0.1}\n')
    monkeypatch.setitem(launchers.LAUNCHERS, "local", lambda *_: None)  # as if its process had been told to stop
    with pytest.raises(UserError, match=r"trials were stopped \(0000\): the same command goes on with them"):
        sweep(found.config)


def test_a_rung_that_no_trial_reaches_is_told(tmp_path: Path) -> None:
    settings = {"search": {"optim.lr": ["1", "2"]}, "halving": {"steps": [500]}}
    base = (*TINY, "train.budget={kind: tokens, tokens: 9000}")
    found = swept(tmp_path, lambda _: {"loss": 1.0}, base=base, **settings)
    with pytest.raises(UserError, match=r"no trial was evaluated at step 500 or later: lower halving\.steps"):
        sweep(found.config)


def test_a_metric_that_a_finished_trial_lacks_is_told_with_those_it_wrote(folder: Path) -> None:
    found = swept(folder, lambda _: {"loss": 1.0}, base=BASE, search=ACTIVATIONS, metric="heldout.loss/ko")
    with pytest.raises(UserError, match=r"trial 0000 wrote no heldout\.loss/ko; there are .*heldout\.loss"):
        sweep(found.config)


def test_an_arm_need_not_have_read_a_corpus_but_one_must(folder: Path) -> None:
    found = swept(folder, lambda _: {"loss": 1.0}, base=BASE, search=ACTIVATIONS, metric="corpora.ko.loss")
    with pytest.raises(UserError, match=r"trial 0000, trial 0001 wrote no corpora\.ko\.loss; there are heldout\.loss"):
        sweep(found.config)
    run = found.run_of(found.trials()[1])
    assert run is not None
    (run / "results.json").write_text(json.dumps({"heldout": {"loss": 1.0}, "corpora": {"ko": {"loss": 2.0}}}))
    assert sweep(found.config) == found.path


def test_optuna_does_not_try_a_failed_arm_again_with_each_proposal(folder: Path) -> None:
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    search = {"text.source.paths": ("none.txt", "nothing.txt")}
    sampler = {"kind": "optuna", "arms": 2}
    path = sweep(config_of(name="proposed", search=search, sampler=sampler, most_failures=3))
    records = read_sweep(path).records()
    assert [record.state for record in records] == ["failed"] * 2
    for record in records:
        assert (path / "output" / f"{record.trial.name}.log").read_text().count("no such file") == 1


def test_a_stage_trains_the_best_of_the_arms_that_optuna_proposed(folder: Path) -> None:
    pytest.importorskip("optuna", reason="the extra sweep is not installed")
    take = [{"metric": "heldout.loss", "mode": "min", "count": 1}]
    path = sweep(
        config_of(
            name="staged",
            search={"optim.lr": {"low": 1e-9, "high": 1e-2, "log": True}},
            sampler={"kind": "optuna", "arms": 2, "at_once": 2},
            stages=[{"take": take, "search": {"optim.weight_decay": ["0.5"]}}],
            trials_at_once=2,
        )
    )
    *proposed, last = read_sweep(path).records()
    assert [one.trial.stage for one in (*proposed, last)] == [0, 0, 1]
    assert {one.state for one in (*proposed, last)} == {"finished"}
    best = min(proposed, key=lambda record: record.results["heldout.loss"] or math.inf)
    assert last.trial.arm == {**best.trial.arm, "optim.weight_decay": "0.5"}
    assert last.run is not None
    trained = read(PretrainConfig, last.run / "config.yaml").optim
    assert (trained.lr, trained.weight_decay) == (float(best.trial.arm["optim.lr"]), 0.5)


def test_each_trial_of_a_classifier_has_its_own_seed(folder: Path, undisturbed: Path) -> None:
    run = read_sweep(undisturbed).records()[0].run
    table = write_csv(folder / "train.csv", 90)
    base = [f"encoder.run={run}", "data.kind=labelled", f"data.train={table}", "data.label=target", "tracking=[]"]
    base += ["splits.validation=0.2", "splits.test=0.2", "train.epochs=1"]
    settings = {"command": "finetune.cnn_head", "search": {"optim.lr": ["1e-3"]}, "metric": "test.accuracy"}
    path = sweep(config_of(name="classifiers", base=base, seeds=[3, 5], trials_at_once=2, mode="max", **settings))
    runs = [record.run for record in read_sweep(path).records() if record.state == "finished" and record.run]
    assert [read_results(run).trials[0].seed for run in runs] == [3, 5]
    assert len({read_results(run).trials[0].weights_sha256 for run in runs}) == 2


@pytest.mark.parametrize("damage", ['{"number": 0, "stage": 0, "arm": 5, "seed": 0}\n', "[]\n"])
def test_a_damaged_plan_is_told(tmp_path: Path, damage: str) -> None:
    found = swept(tmp_path, lambda _: {"loss": 1.0}, search=ACTIVATIONS)
    (found.path / "plan.jsonl").write_text(damage)
    with pytest.raises(UserError, match=r"plan\.jsonl is damaged"):
        read_sweep(found.path).trials()


def test_a_plan_that_lacks_a_trial_is_told(tmp_path: Path) -> None:
    found = swept(tmp_path, lambda _: {"loss": 1.0}, base=BASE, search=ACTIVATIONS)
    first, _ = (found.path / "plan.jsonl").read_text().splitlines()
    (found.path / "plan.jsonl").write_text(f"{first}\n")
    with pytest.raises(UserError, match=r"plan\.jsonl is damaged, trials are missing"):
        sweep(found.config)


def test_a_number_that_is_none_is_no_result() -> None:
    results = {"heldout": {"loss": float("nan"), "accuracy": 0.5}, "seconds": float("inf"), "name": "x", "ok": True}
    assert dict(numbers(results)) == {"heldout.loss": None, "heldout.accuracy": 0.5, "seconds": None}


def test_a_second_sweep_on_a_folder_changes_nothing_in_it(tmp_path: Path) -> None:
    found = swept(tmp_path, lambda _: {"loss": 1.0}, search={"a": ["1"]})
    before = (found.path / "sweep.yaml").read_text()
    assert sweep_again(found, trials_at_once=7).config.trials_at_once == 7
    assert (found.path / "sweep.yaml").read_text() == before


@pytest.mark.parametrize("name", recipes.known("sweep"))
def test_a_recipe_of_a_sweep_is_accepted_by_its_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = read(SweepConfig, recipes.find(name, "sweep"))
    assert config.name == "_".join(reversed(name.split("/")))
    swept_command = importlib.import_module(config.command)
    searches = [config.search, *(stage.search for stage in config.stages)]
    for arm in itertools.chain.from_iterable(map(arms.ends, searches)):  # each value, not each combination
        swept_command.main([*config.base, *arms.overrides_of(arm), "--print-config"])
    assert capsys.readouterr().out


def full_size(command_name: str) -> list[str]:
    sweeps = {name: read(SweepConfig, path) for name, path in recipes.known("sweep").items()}
    return [name for name, one in sweeps.items() if name.startswith("full_size/") and one.command == command_name]


@pytest.mark.parametrize("name", full_size("mlm.pretrain"))
def test_the_models_of_a_full_size_sweep_are_built(name: str) -> None:
    config = read(SweepConfig, recipes.find(name, "sweep"))
    tried = arms.ends(config.search)
    recipe, *overrides = config.base
    sizes = set[tuple[int, int, int, int]]()
    with torch.device("meta"):
        for arm in tried:
            words = [*overrides, *arms.overrides_of(arm)]
            one = read(PretrainConfig, recipes.find(recipe, "pretrain"), words)
            MaskedLanguageModel(one.model, one.vocabulary.size, one.data.row_length)
            encoder = one.model.encoder
            sizes.add((encoder.width, encoder.heads, encoder.layers, one.train.batch_rows))
    assert all(512 <= width <= 1536 and 8 <= heads <= 16 and 3 <= layers <= 9 for width, heads, layers, _ in sizes)
    assert {batch_rows for *_, batch_rows in sizes} <= {128, 256}


def test_the_metrics_of_classifiers_are_those_of_their_results() -> None:
    from finetune.evaluation.metrics import METRIC_NAMES
    from finetune.evaluation.results import Results

    *scored, (prefix, others) = METRICS["finetune.cnn_head"]
    assert {frozenset(names) for _, names in scored} == {frozenset((*METRIC_NAMES, "loss"))}
    assert (prefix, set(others)) == ("", set(others) & set(Results.model_fields))


def test_ray_tune_runs_the_same_trials(folder: Path, undisturbed: Path) -> None:
    pytest.importorskip("ray.tune", reason="the extra sweep is not installed")
    done = processes.run(sweep_in_process("by_ray", launcher="ray"))
    assert done.returncode == 0, done.stderr
    assert csv_of(folder / "runs" / "sweeps" / "by_ray") == csv_of(undisturbed)
