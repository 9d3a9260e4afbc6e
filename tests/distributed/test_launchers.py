"""The same job, whoever starts it: torchrun on two machines, accelerate, SLURM."""

import os
import signal
import subprocess
from pathlib import Path
from socket import socket

import pytest

from tests.distributed.jobs import STEPS, ranks, records, run_of, wait_for_step
from tests.distributed.launch import finish, launch


def free_port() -> str:
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_two_machines_resume_together_after_one_lost_a_process(home: Path, alone: Path) -> None:
    meeting = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    words = (*meeting, "--max-restarts=1", "-m", "mlm.pretrain", "recipe.yaml", "name=nodes")
    machines = [launch(home, "torch.distributed.run", *words) for _ in range(2)]
    wait_for_step(home, "nodes", 25, machines[0])
    os.kill(next(ranks(machines[1])), signal.SIGKILL)
    outputs = [finish(machine) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    run = run_of(home, "nodes")
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    expected = [record["loss"] for record in records(alone)]
    assert [record["loss"] for record in records(run)] == pytest.approx(expected, rel=1e-4)


def test_accelerate_starts_the_same_job(home: Path, alone: Path) -> None:
    settings = ("--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")
    job = ("-m", "mlm.pretrain", "recipe.yaml", "name=accelerate")
    process = launch(home, "accelerate.commands.launch", *settings, f"--main_process_port={free_port()}", *job)
    output = finish(process)
    assert process.returncode == 0, output
    assert "2 processes on cpu" in output
    expected = [record["loss"] for record in records(alone)]
    assert [record["loss"] for record in records(run_of(home, "accelerate"))] == pytest.approx(expected, rel=1e-4)


def test_a_job_that_slurm_restarts_resumes_its_own_run(home: Path) -> None:
    def job(**slurm: str) -> "list[subprocess.Popen[str]]":
        shared = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
            "SLURM_JOB_ID": "7",
        } | slurm
        return [
            launch(home, "mlm.pretrain", "recipe.yaml", "name=slurm", RANK=rank, LOCAL_RANK=rank, **shared)
            for rank in ("0", "1")
        ]

    first = job()
    wait_for_step(home, "slurm", 15, first[0])
    first[1].send_signal(signal.SIGUSR1)
    outputs = [finish(one) for one in first]
    assert [one.returncode for one in first] == [128 + signal.SIGUSR1] * 2, outputs
    again = job(SLURM_RESTART_COUNT="1")
    outputs = [finish(one) for one in again]
    assert [one.returncode for one in again] == [0, 0], outputs
    assert [record["step"] for record in records(run_of(home, "slurm"))] == list(range(1, STEPS + 1))
