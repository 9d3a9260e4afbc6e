"""The same job, whoever starts it: torchrun on two machines, accelerate, SLURM."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.distributed.jobs import assert_equal, ranks, run_of, wait_for_step, weights
from tests.distributed.launch import finish, launch
from tests.processes import free_port


@pytest.fixture(scope="module")
def pair(home: Path) -> Path:
    """Return the finished run of two processes that accelerate started."""
    settings = ("--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")
    job = ("-m", "mlm.pretrain", "recipe.yaml", "name=accelerate")
    process = launch(home, "accelerate.commands.launch", *settings, f"--main_process_port={free_port()}", *job)
    output = finish(process)
    assert process.returncode == 0, output
    assert "2 processes on cpu" in output
    return run_of(home, "accelerate")


def test_accelerate_starts_the_same_job(pair: Path, alone: Path) -> None:
    assert_equal(pair, alone)


def test_two_machines_resume_together_after_one_lost_a_process(home: Path, pair: Path) -> None:
    meeting = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    words = (*meeting, "--max-restarts=1", "-m", "mlm.pretrain", "recipe.yaml", "name=nodes")
    machines = [launch(home, "torch.distributed.run", *words) for _ in range(2)]
    wait_for_step(home, "nodes", 15, machines[0])
    os.kill(next(ranks(machines[1])), signal.SIGKILL)
    outputs = [finish(machine) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    run = run_of(home, "nodes")
    assert_equal(run, pair)
    assert weights(run) == weights(pair)


def test_a_job_that_slurm_restarts_resumes_its_own_run_with_the_processes_that_it_has(home: Path, alone: Path) -> None:
    def job(processes: int, **slurm: str) -> "list[subprocess.Popen[str]]":
        shared = {
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "SLURM_JOB_ID": "7",
        } | slurm
        return [
            launch(home, "mlm.pretrain", "recipe.yaml", "name=slurm", RANK=rank, LOCAL_RANK=rank, **shared)
            for rank in map(str, range(processes))
        ]

    first = job(2)
    wait_for_step(home, "slurm", 15, first[0])
    first[1].send_signal(signal.SIGUSR1)
    outputs = [finish(one) for one in first]
    assert [one.returncode for one in first] == [128 + signal.SIGUSR1] * 2, outputs
    (again,) = job(1, SLURM_RESTART_COUNT="1")
    output = finish(again)
    assert again.returncode == 0, output
    assert_equal(run_of(home, "slurm"), alone)
