"""A head that is trained on a frozen encoder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from configs import UserError
from mlm.checkpoint import checkpoint
from mlm.experiment import PretrainRun, pretrain, resume
from tests.mlm.runs import config_in, hashed, write_corpus
from tests.processes import free_port

HEADED = ("model.transform=true", "evaluation.words=0", "train.budget.steps=3")
SHORT = ("train.frozen_encoder=true", "evaluation.words=0", "train.budget.steps=6")
KINDS = {
    "adamw": ("optim.kind=adamw", "optim.lr=2e-3"),
    "muon": ("optim.kind=muon",),
    "schedule_free": ("optim.kind=schedule_free", "schedule.kind=constant"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_corpus(folder / "corpus.txt")
    return folder


@pytest.fixture(scope="module")
def start(home: Path) -> PretrainRun:
    return pretrain(config_in(home, "name=start", *HEADED))


def weights(run: PretrainRun) -> dict[str, Tensor]:
    return load_file(run.checkpoint / checkpoint.WEIGHTS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_alone_is_trained_and_resumes_bit_for_bit(home: Path, start: PretrainRun, kind: str) -> None:
    settings = [f"start_from={start.path}", *SHORT, *KINDS[kind]]
    whole = pretrain(config_in(home, "name=whole", *settings))
    before, after = weights(start), weights(whole)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if not name.startswith("encoder.")}
    assert whole.results is not None
    assert whole.results["heldout"]["loss"] < whole.results["heldout_at_start"]["loss"]
    answers = iter([0, 0, 0, 1])
    stopped = pretrain(config_in(home, "name=stopped", *settings), stop=lambda: next(answers, 0))
    assert stopped.results is None
    assert hashed(resume(stopped.path)) == hashed(whole)


def test_without_a_transform_the_output_bias_alone_is_trained(home: Path) -> None:
    start = pretrain(config_in(home, "name=plain", "evaluation.words=0", "train.budget.steps=1"))
    trained = pretrain(config_in(home, "name=bias", f"start_from={start.path}", *SHORT, *KINDS["muon"]))
    before, after = weights(start), weights(trained)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"output_bias"}


def sharded(rank: int, port: int, home: Path, start: Path, output: Path) -> None:
    """Train the head of a sharded model; the group of one process is the run's own."""
    torch.set_num_threads(1)
    settings = [f"start_from={start}", *SHORT, "parallel.kind=sharded_data"]
    answers = iter([0, 0, 0, 1])
    whole = pretrain(config_in(home, "name=sharded", *settings, *KINDS["adamw"]))
    stopped = pretrain(config_in(home, "name=sharded_half", *settings, *KINDS["adamw"]), stop=lambda: next(answers, 0))
    output.write_text(json.dumps([hashed(whole), hashed(resume(stopped.path)), str(whole.checkpoint)]))


def test_a_sharded_encoder_can_be_frozen_too(home: Path, start: PretrainRun, tmp_path: Path) -> None:
    spawn(sharded, (free_port(), home, start.path, tmp_path / "out"), nprocs=1)  # type: ignore[no-untyped-call]
    whole, resumed, folder = json.loads((tmp_path / "out").read_text())
    assert whole == resumed
    before, after = weights(start), load_file(Path(folder) / checkpoint.WEIGHTS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if not name.startswith("encoder.")}


def test_a_frozen_encoder_must_have_been_trained(home: Path) -> None:
    with pytest.raises(UserError, match="start_from"):
        config_in(home, "train.frozen_encoder=true")
