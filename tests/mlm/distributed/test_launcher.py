"""The variables that a launcher sets, or leaves half set."""

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest

from configs import UserError
from mlm.distributed.launcher import Launch, job_of_slurm, launch
from mlm.distributed.process import configure_process
from mlm.distributed.rendezvous import join
from mlm.distributed.world import init_world

WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
STARTS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER", "TORCHELASTIC", "SLURM", "OMPI", "MPI", "GOMP", "TORCH_CPP")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    for name in before:
        if name.startswith(STARTS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    yield
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": " 1 ", "RANK": "7", "LOCAL_RANK": "x"},
        {"TORCHELASTIC_RUN_ID": "left over"},
        {"TORCHELASTIC_RUN_ID": "left over", "WORLD_SIZE": "1", "RANK": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"},
        {"RANK": "3", "MASTER_PORT": "no number"},
    ],
)
def test_what_is_left_of_another_job_leaves_a_process_alone(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    configure_process()
    assert launch() == Launch()
    world = init_world()
    assert (world.rank, world.size, world.store) == (0, 1, None)


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_a_variable_that_is_missing_is_named(missing: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WHOLE.items():
        if name != missing:
            monkeypatch.setenv(name, value)
        elif how == "empty":
            monkeypatch.setenv(name, "")
    configure_process()
    with pytest.raises(UserError, match=rf"WORLD_SIZE is 2.*{missing} "):
        join(timedelta(seconds=5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("WORLD_SIZE", value) for value in ("two", "0", "-1", "1.5", "²", "$N")],
        *[("RANK", value) for value in ("2", "-1", "one", "9" * 30)],
        *[("MASTER_PORT", value) for value in ("http", "70000")],
        *[("LOCAL_RANK", value) for value in ("a", "-1")],
    ],
)
def test_a_variable_that_is_wrong_is_named_with_its_value(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known, right in WHOLE.items():
        monkeypatch.setenv(known, right)
    monkeypatch.setenv(name, value)
    configure_process()
    with pytest.raises(UserError, match=name) as raised:
        join(timedelta(seconds=5))
    assert value in str(raised.value)


@pytest.mark.parametrize(
    ("environment", "local"),
    [
        ({}, 0),
        ({"LOCAL_RANK": ""}, 0),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 1),
        ({"SLURM_LOCALID": "2"}, 2),
        ({"MPI_LOCALRANKID": "3"}, 3),
        ({"LOCAL_RANK": "3", "SLURM_LOCALID": "1"}, 3),
    ],
)
def test_the_number_on_the_machine_is_0_where_nothing_tells_it(
    environment: dict[str, str], local: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (WHOLE | environment).items():
        monkeypatch.setenv(name, value)
    assert launch() == Launch(1, 2, local, has_store=True)


def test_a_job_of_slurm_has_a_name_and_knows_whether_it_ran_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_of_slurm() == ("", False)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert job_of_slurm() == ("", False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert job_of_slurm() == ("slurm 7", True)
    for count in ("", "0"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        assert job_of_slurm() == ("slurm 7", False)
