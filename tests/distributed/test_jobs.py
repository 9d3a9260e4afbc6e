"""Jobs of several processes as users run them: stopped, killed, hung, started again, gone on with by fewer."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from mlm import checkpoint
from tests.distributed.launch import finish, launch, torchrun

STEPS = 60
RECIPE = f"""
name: job
text:
  source:
    kind: files
    paths: text.txt
  heldout_share: 0.1
vocabulary:
  size: 300
data:
  row_length: 32
model:
  encoder:
    width: 16
    heads: 2
    feedforward_width: 32
    layers: 2
train:
  batch_rows: 6
  budget:
    steps: {STEPS}
  intervals:
    log_steps: 1
    evaluate_steps: 20
    checkpoint_steps: 10
  precision: float32
evaluation:
  words: 0
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    words = ("the", "old", "dog", "sees", "a", "red", "house", "under", "grey", "clouds", "and", "hears", "rain")
    lines = [" ".join(words[(n * k) % len(words)] for k in range(1, 5 + n % 9)) for n in range(1, 400)]
    (folder / "text.txt").write_text(".\n".join(lines) + ".\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def start(home: Path, processes: int, name: str, *words: str, **options: str) -> "subprocess.Popen[str]":
    return torchrun(processes, "mlm.pretrain", "recipe.yaml", f"name={name}", *words, folder=home, **options)


def go_on(home: Path, processes: int, run: Path) -> str:
    process = torchrun(processes, "mlm.pretrain", "--resume", str(run), folder=home)
    output = finish(process)
    assert process.returncode == 0, output
    return output


def run_of(home: Path, name: str) -> Path:
    (path,) = home.glob(f"runs/*-{name}")
    return path


def records(run: Path, side: str = "train") -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["side"] == side]


def wait_for_step(home: Path, name: str, step: int, process: "subprocess.Popen[str]") -> None:
    while process.poll() is None:
        found = list(home.glob(f"runs/*-{name}/metrics.jsonl"))
        if found and f'"step": {step},' in found[0].read_text():
            return
        time.sleep(0.02)
    raise AssertionError(finish(process))


def ranks(process: "subprocess.Popen[str]") -> Iterator[int]:
    """Yield the process ids of a job's ranks, in order."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True)
    by_rank = {}
    for pid in map(int, found.stdout.split()):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        by_rank.update({int(line[5:]): pid for line in environment if line.startswith(b"RANK=")})
    yield from (by_rank[rank] for rank in sorted(by_rank))


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    """Return the finished run of one process."""
    process = start(home, 1, "alone")
    output = finish(process)
    assert process.returncode == 0, output
    return run_of(home, "alone")


@pytest.mark.parametrize("kind", ["replicated_data", "sharded_data"])
def test_a_stopped_run_goes_on_with_fewer_processes(home: Path, alone: Path, kind: str) -> None:
    name = f"fewer-{kind}"
    process = start(home, 4, name, f"parallel.kind={kind}", "train.budget.steps=60")
    wait_for_step(home, name, 15, process)
    os.kill(list(ranks(process))[2], signal.SIGTERM)  # one rank is told, and all stop after the same step
    output = finish(process)
    assert process.returncode != 0
    run = run_of(home, name)
    stopped = int(re.search(r"step (\d+) is saved", output)[1])  # type: ignore[index]
    assert 15 <= stopped < STEPS
    assert checkpoint.finished(run)[-1].name == f"step-{stopped:09d}"
    go_on(home, 2, run)
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 1))
    for side in ("train", "heldout"):
        expected = [record["loss"] for record in records(alone, side)]
        assert [record["loss"] for record in records(run, side)] == pytest.approx(expected, rel=1e-4)
    assert (run / "results.json").exists()


@pytest.mark.parametrize("kind", ["replicated_data", "sharded_data"])
def test_a_killed_rank_is_started_again_and_the_run_goes_on_bit_for_bit(home: Path, kind: str) -> None:
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


def free_port() -> str:
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_two_machines_go_on_together_when_one_of_them_lost_a_process(home: Path, alone: Path) -> None:
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


def test_a_hung_rank_ends_the_job_and_is_named(home: Path) -> None:
    process = start(home, 2, "hung", "train.silence_minutes=0.1", "train.budget.steps=100000")
    wait_for_step(home, "hung", 5, process)
    hung = list(ranks(process))[1]
    os.kill(hung, signal.SIGSTOP)
    began = time.monotonic()
    try:
        output = finish(process, seconds=90)
    finally:
        with suppress(ProcessLookupError):
            os.kill(hung, signal.SIGKILL)
    assert process.returncode != 0
    assert time.monotonic() - began < 75
    assert re.search(rf"error: rank 0 stops: rank 1 \(process {hung} on .*\) ended or hangs", output), output


def test_batches_with_fewer_rows_than_processes_are_a_mistake(home: Path) -> None:
    process = start(home, 2, "few", "train.batch_rows=1")
    output = finish(process)
    assert process.returncode != 0
    assert "error: train.batch_rows = 1 rows cannot be divided among 2 processes" in output
    assert not list(home.glob("runs/*-few"))


def test_a_job_that_slurm_starts_again_goes_on_with_its_own_run(home: Path) -> None:
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
