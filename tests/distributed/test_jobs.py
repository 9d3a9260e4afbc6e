"""Jobs that are stopped, killed or hung, and gone on with, by fewer processes too."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from mlm.checkpoint import checkpoint
from tests.distributed.jobs import STEPS, ranks, records, run_of, start, wait_for_step
from tests.distributed.launch import finish, torchrun


def go_on(home: Path, processes: int, run: Path) -> str:
    process = torchrun(processes, "mlm.pretrain", "--resume", str(run), folder=home)
    output = finish(process)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("kind", ["replicated_data", "sharded_data"])
def test_a_stopped_run_resumes_with_fewer_processes(home: Path, alone: Path, kind: str) -> None:
    name = f"fewer-{kind}"
    process = start(home, 4, name, f"parallel.kind={kind}", "train.budget.steps=60")
    wait_for_step(home, name, 15, process)
    os.kill(list(ranks(process))[2], signal.SIGTERM)  # one rank is told, and all stop after the same step
    output = finish(process)
    assert process.returncode != 0
    run = run_of(home, name)
    stopped = int(re.search(r"step (\d+) is saved", output)[1])  # type: ignore[index]
    assert 15 <= stopped < STEPS
    assert checkpoint.completed(run)[-1].name == f"step-{stopped:09d}"
    go_on(home, 2, run)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    for side in ("train", "heldout"):
        expected = [record["loss"] for record in records(alone, side)]
        assert [record["loss"] for record in records(run, side)] == pytest.approx(expected, rel=1e-4)
    assert (run / "results.json").exists()


@pytest.mark.parametrize("kind", ["replicated_data", "sharded_data"])
def test_a_killed_rank_is_restarted_and_the_run_resumes_bit_for_bit(home: Path, kind: str) -> None:
    whole = start(home, 2, f"whole-{kind}", f"parallel.kind={kind}", "model.encoder.dropout=0.1")
    output = finish(whole)
    assert whole.returncode == 0, output
    name = f"killed-{kind}"
    process = start(home, 2, name, f"parallel.kind={kind}", "model.encoder.dropout=0.1", max_restarts="1")
    wait_for_step(home, name, 25, process)
    os.kill(list(ranks(process))[1], signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 0, output
    run = run_of(home, name)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    weights = [
        json.loads((path / "results.json").read_text())["weights_sha256"]
        for path in home.glob(f"runs/*-{kind}")
        if path.name.endswith((f"-whole-{kind}", f"-killed-{kind}"))
    ]
    assert len(weights) == 2
    assert weights[0] == weights[1]


def test_a_hung_rank_ends_the_job_and_is_named(home: Path) -> None:
    process = start(home, 2, "hung", "train.silence_minutes=0.1", "train.budget.steps=100000")
    wait_for_step(home, "hung", 5, process)
    first, hung = ranks(process)
    os.kill(hung, signal.SIGSTOP)
    until = time.monotonic() + 30
    while Path(f"/proc/{first}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert time.monotonic() < until, "rank 0 waits for ever"
    os.kill(hung, signal.SIGCONT)  # it finds itself alone, and ends too; torchrun would kill it half a minute later
    output = finish(process)
    assert process.returncode != 0
    assert re.search(rf"error: rank 0 stops: rank 1 \(process {hung} on .*\) ended or hangs", output), output


def test_batches_with_fewer_rows_than_processes_are_a_mistake(home: Path) -> None:
    process = start(home, 2, "few", "train.batch_rows=1")
    output = finish(process)
    assert process.returncode != 0
    assert "error: train.batch_rows = 1 rows cannot be divided among 2 processes" in output
    assert not list(home.glob("runs/*-few"))
