"""Jobs that are stopped, killed or hung, and gone on with, by fewer processes too."""

import os
import re
import signal
import time
from pathlib import Path

from mlm.checkpoint import checkpoint
from tests.distributed.jobs import STEPS, assert_equal, ranks, records, run_of, start, wait_for_step, weights
from tests.distributed.launch import finish
from tests.processes import TIMEOUT_SECONDS, call


def test_a_stopped_run_resumes_with_fewer_processes(home: Path, alone: Path) -> None:
    """Of sharded data; `test_launchers` stops and resumes replicated data."""
    process = start(home, 2, "fewer", "parallel.kind=sharded_data")
    wait_for_step(home, "fewer", 15, process)
    os.kill(list(ranks(process))[1], signal.SIGTERM)  # one rank is told, and all stop after the same step
    output = finish(process)
    assert process.returncode != 0
    run = run_of(home, "fewer")
    stopped = int(re.search(r"step (\d+) is saved", output)[1])  # type: ignore[index]
    assert 15 <= stopped < STEPS
    assert checkpoint.completed(run)[-1].name == f"step-{stopped:09d}"
    resumed = call(home, "mlm.pretrain", "--resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    assert_equal(run, alone)
    assert (run / "results.json").exists()


def test_a_killed_rank_is_restarted_and_the_run_resumes_bit_for_bit(home: Path) -> None:
    """Of sharded data; `test_launchers` kills a rank of replicated data."""
    settings = ("parallel.kind=sharded_data", "model.encoder.dropout=0.1")
    whole = start(home, 2, "whole", *settings)
    output = finish(whole)
    assert whole.returncode == 0, output
    process = start(home, 2, "killed", *settings, max_restarts="1")
    wait_for_step(home, "killed", 15, process)
    os.kill(list(ranks(process))[1], signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 0, output
    run = run_of(home, "killed")
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    assert weights(run) == weights(run_of(home, "whole"))


def test_a_hung_rank_ends_the_job_and_is_named(home: Path) -> None:
    process = start(home, 2, "hung", "train.silence_minutes=0.1", "train.budget.steps=100000")
    wait_for_step(home, "hung", 5, process)
    first, hung = ranks(process)
    os.kill(hung, signal.SIGSTOP)
    until = time.monotonic() + TIMEOUT_SECONDS
    while Path(f"/proc/{first}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert time.monotonic() < until, "rank 0 waits for ever"
    os.kill(hung, signal.SIGCONT)  # it finds itself alone, and ends too; torchrun would kill it half a minute later
    output = finish(process)
    assert process.returncode != 0
    assert re.search(rf"error: rank 0 stops: rank 1 \(process {hung} on .*\) ended or hangs", output), output
