"""Pretraining as a function: called from a program that has imported torch and goes on afterwards."""

import json
import math
import os
import random
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.multiprocessing.spawn import spawn

from configs import UserError
from mlm import evaluate, experiment, status
from mlm.build import corpus_of
from mlm.checkpoint import checkpoint
from mlm.checkpoint.interrupt import SIGNALS, SignalStop
from mlm.experiment import pretrain, resume
from mlm.tracking import run_directory
from mlm.tracking.progress_bar import ProgressBar
from mlm.training.budget import TrainingProgress, Words
from mlm.training.loop import Observer, StepMetrics
from tests.mlm.runs import config_in, hashed, write_corpus
from tests.processes import free_port


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_corpus(folder / "corpus.txt")
    return folder


def process_state() -> Mapping[str, Any]:
    """Return the state of this process that a library has no business to change."""
    return {
        "environment": {name: value for name, value in os.environ.items() if not name.startswith("TORCH")},
        "signals": [signal.getsignal(number) for number in SIGNALS],
        "threads": torch.get_num_threads(),
        "random state": torch.get_rng_state().tolist(),
        "default dtype": torch.get_default_dtype(),
        "process group": dist.is_initialized(),
        "folder": Path.cwd(),
    }


def test_pretrain_runs_twice_in_a_program_and_prints_nothing(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = process_state()
    first, second = (pretrain(config_in(home, f"name={name}")) for name in ("first", "second"))
    assert process_state() == before
    assert capfd.readouterr() == ("", "")
    assert hashed(first) == hashed(second)
    assert first.path != second.path
    assert first.stopped_by == 0
    saved = torch.load(first.checkpoint / "training_state.pt", weights_only=True)["weights"]
    weights = dict(first.model.named_parameters())
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())
    assert first.tokenizer.decode(first.tokenizer.encode("the cat").ids).strip() == "the cat"
    assert resume(first.path).results == first.results


def test_words_shown_are_a_budget_and_keep_checkpoints(home: Path) -> None:
    keep = "train.keep={newest: 1, best: false, at_words: [1000, 2500, 1000000]}"
    config = config_in(home, keep, "name=words")
    config = config.model_copy(update={"train": config.train.model_copy(update={"budget": Words(words=4000)})})
    corpus = corpus_of(config)
    words_of_a_step = config.train.batch_rows * corpus.manifest.train.words / len(corpus.train)
    run = pretrain(config)
    assert run.results is not None
    steps = [math.ceil(words / words_of_a_step) for words in (1000, 2500, 4000)]
    assert len(set(steps)) == 3
    assert not set(steps) & {config.train.intervals.checkpoint_steps}
    assert [int(folder.name.partition("-")[2]) for folder in checkpoint.completed(run.path)] == steps
    assert run.results["steps"] == steps[-1]
    assert run.results["words"] == round(steps[-1] * words_of_a_step)
    assert run.results["epochs"] == pytest.approx(steps[-1] * config.train.batch_rows / len(corpus.train))
    assert f"{run.results['words']:,} words shown, {run.results['epochs']:.2f} epochs" in run.summary
    logged = [
        record["step"] for record in run_directory.read_metrics(run.path / "metrics.jsonl") if record["side"] == "train"
    ]
    assert set(steps) <= set(logged)


class Losses(Observer):
    """Keeps the training loss of every record."""

    def __init__(self) -> None:
        self.losses: list[float | None] = []

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        self.losses.append(metrics.mean("loss"))


@pytest.mark.parametrize(
    "kind",
    [
        ["optim.kind=adamw"],
        ["optim.kind=schedule_free"],
        ["optim.kind=muon"],
        ["optim.kind=muon", "initial_embeddings.kind=cooccurrence"],
    ],
)
def test_a_run_that_is_asked_to_stop_is_saved_and_resumes_to_the_same_weights(home: Path, kind: list[str]) -> None:
    settings = (*kind, "model.encoder.dropout=0.1", "train.intervals.log_steps=3")
    whole, observer = pretrain(config_in(home, "name=whole", *settings)), Losses()
    answers = iter([0, 7])  # and 0 from then on: the answer is kept
    stopped = pretrain(
        config_in(home, "name=stopped", *settings),
        [observer],
        stop=lambda: next(answers, 0) if observer.losses else 0,
    )
    assert (stopped.results, stopped.stopped_by) == (None, 7)
    assert str(stopped.path) in stopped.summary
    assert len(observer.losses) >= 2
    counted = list(home.rglob("embeddings-*.safetensors"))
    assert len(counted) == any("cooccurrence" in setting for setting in kind)
    for path in counted:
        path.unlink()
    finished = resume(stopped.path)
    assert not list(home.rglob("embeddings-*.safetensors"))  # a run that goes on needs none
    assert hashed(finished) == hashed(whole)
    assert finished.results is not None
    assert whole.results is not None
    assert finished.results["heldout"] == whole.results["heldout"]


def test_steps_without_targets_have_no_loss_in_any_record(
    home: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """From 15 % to nearly nothing: the last steps hide no token of their rows."""
    settings = ("data.row_length=32", "evaluation.words=0", "masking.final_rate=1e-4", "train.intervals.log_steps=1")
    run = pretrain(config_in(home, "name=none", *settings), [ProgressBar()])
    assert run.results is not None
    assert math.isfinite(run.results["heldout"]["loss"])
    metrics = (run.path / "metrics.jsonl").read_text()
    records = [json.loads(line, parse_constant=pytest.fail) for line in metrics.splitlines()]
    trained = [record for record in records if record["side"] == "train"]
    empty = [record["step"] for record in trained if record["loss"] is None]
    assert empty == [19, 20]
    assert [record["step"] for record in trained if record["accuracy"] is None] == empty
    assert all(record["loss"] != 0.0 for record in trained)
    assert [record["skipped_updates"] for record in trained] == [0] * 20
    board = EventAccumulator(str(run.path))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 19))
    assert len([line for line in caplog.messages if "step 19" in line and "masking.rate" in line]) == 1
    assert not [line for line in caplog.messages if "step 20" in line]  # once in a run
    assert "step 20 (100%): loss -, held-out" in capfd.readouterr().err
    status.main([str(run.path)])
    assert "loss -, held-out" in capfd.readouterr().out


def test_a_text_without_letters_has_no_bits_per_byte(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor has it other measures of kinds of masks that it does not get."""
    signs = ["😀", "🐈", "🌍", "!", "?"]
    chance = random.Random(3)
    lines = [" ".join("".join(chance.choices(signs, k=3)) for _ in range(12)) for _ in range(400)]
    (home / "signs.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = (f"text.source.paths={home / 'signs.txt'}", "vocabulary.size=275", "masking.mask_share=1", "name=signs")
    run = pretrain(config_in(home, "masking.random_share=0", *settings))
    assert run.results is not None
    assert run.results["heldout"]["bits_per_byte"] is None
    assert run_directory.read_json(run.path / "results.json")["heldout"]["bits_per_byte"] is None
    assert len([line for line in run.summary.splitlines() if "not measured: " in line]) == 1
    evaluate.main([str(run.path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:] for line in lines if "random" in line or "itself" in line] == [["0", "-", "-", "-"]] * 6
    assert "not measured: " in lines[-1]
    evaluate.main([str(run.path), "--json"])
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["bits_per_byte"] is None
    assert found["masks"]["word"]["all"] == found["masks"]["word"]["[MASK]"]
    nothing = {"targets": 0, "loss": None, "perplexity": None, "accuracy": None}
    assert found["masks"]["word"]["random"] == found["masks"]["word"]["itself"] == nothing


def test_dna_is_trained_on_by_whole_words_and_measured_in_bits_per_byte(home: Path) -> None:
    chance = random.Random(1)
    (home / "dna.txt").write_text("\n".join("".join(chance.choices("ACGT", k=600)) for _ in range(100)))
    run = pretrain(config_in(home, f"text.source.paths={home / 'dna.txt'}", "masking.unit=word", "name=dna"))
    assert run.results is not None
    assert math.log2(4) / 2 < run.results["heldout"]["bits_per_byte"] < 8
    losses = [record["loss"] for record in run_directory.read_metrics(run.path / "metrics.jsonl")]
    assert all(3 < loss < 7 for loss in losses)


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        (["masking.rate=0.005"], r"masking\.rate = 0\.005.*rows of 64.*0\.007813.*data\.row_length to 100"),
        (["masking.rate=0.005", "masking.unit=word"], r"masking\.rate = 0\.005.*rows of 64"),
        (["masking.rate=0.005", "vocabulary.cls_sep=true"], r"raise it to 0\.008065.*data\.row_length to 102"),
        (
            ["masking.rate=0.0079", "text.heldout_share=0.05", "evaluation.most_rows=1"],
            r"evaluation\.most_rows = 1 is too small.*needs 64 tokens.*: raise it or masking\.rate",
        ),
        (["masking.rate=0.0079", "text.heldout_share=0.001"], r"too small.*needs 64 tokens.*text\.heldout_share"),
    ],
)
def test_a_held_out_text_without_targets_is_told_with_its_cause(home: Path, settings: list[str], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        pretrain(config_in(home, *settings))


class SignalAtTheEnd(Observer):
    """Sends this process a signal when the last checkpoint has been saved, after the loop's last question."""

    def ended(self, progress: TrainingProgress) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_after_the_last_step_is_heeded_and_the_results_are_measured_on_resuming(home: Path) -> None:
    whole = pretrain(config_in(home, "name=measured"))
    with SignalStop("saving") as signals:
        stopped = pretrain(config_in(home, "name=late"), [SignalAtTheEnd(), signals], stop=signals.received)
    assert (stopped.results, stopped.stopped_by) == (None, signal.SIGTERM)
    assert not (stopped.path / "results.json").exists()
    assert hashed(resume(stopped.path)) == hashed(whole)


@pytest.mark.parametrize("absent", [True, False])
def test_pretrain_needs_no_standard_streams(
    home: Path, absent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "closed").open("w") as closed:
        pass
    monkeypatch.setattr("sys.stdout", None if absent else closed)
    monkeypatch.setattr("sys.stderr", None if absent else closed)
    vocabulary = f"vocabulary.size={301 + absent}"  # to be built
    run = pretrain(config_in(home, "name=silent", vocabulary, "train.budget.steps=2"), [ProgressBar()])
    assert run.results is not None


def test_a_mistake_is_an_exception(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_rows"):
        pretrain(config_in(home, "train.batch_rows=100000"))
    with pytest.raises(UserError, match="nowhere"):
        resume(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"optim\.lr"):
        pretrain(config_in(home, "name=diverged", "optim.lr=1e38", "train.most_skipped=2", "train.budget.steps=60"))
    assert not dist.is_initialized()


def in_a_group(rank: int, port: int, home: Path, output: Path) -> None:
    """Pretrain twice inside a process group of two, use the group afterwards, and write down what mistakes are told."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    runs = [pretrain(config_in(home, f"name={name}")) for name in ("one", "two")]
    number = torch.tensor(rank + 1)
    dist.all_reduce(number)
    assert number.item() == 3
    assert (runs[0].results is None) == (rank != 0)
    if rank == 0:
        (output / "in a group").write_text("\n".join(f"{run.path.name} {hashed(run)}" for run in runs))
    for name, mistake in (("absent", "text.source.paths=nowhere.txt"), ("few", "train.batch_rows=1")):
        with pytest.raises(UserError) as caught:
            pretrain(config_in(home, mistake, f"name={name}"))
        (output / f"{name} {rank}").write_text(str(caught.value))
    dist.destroy_process_group()


def in_a_job(rank: int, port: int, home: Path, output: Path) -> None:
    """Pretrain twice with one configuration, and once with other limits and seeds that differ, as by a launcher."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    overrides = [(), (), ("train.silence_minutes=5", f"train.seed={rank}")]
    runs = [pretrain(config_in(home, "name=job", *more)) for more in overrides]
    assert not dist.is_initialized()
    if rank == 0:
        (output / "in a job").write_text("\n".join(f"{run.path.name} {hashed(run)}" for run in runs))


def in_two_processes(rank: int, ports: tuple[int, int], home: Path, output: Path) -> None:
    """Do both, one after the other: starting a process takes longer than all of it."""
    in_a_group(rank, ports[0], home, output)
    in_a_job(rank, ports[1], home, output)


@pytest.fixture(scope="module")
def output(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what two processes wrote down."""
    folder = tmp_path_factory.mktemp("output")
    spawn(in_two_processes, ((free_port(), free_port()), home, folder), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


def test_a_restarted_job_finds_its_run_though_the_run_that_it_starts_from_has_saved_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = pretrain(config_in(home, "name=start"), stop=lambda: signal.SIGTERM)
    begun = start.checkpoint
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    further = config_in(home, "name=further", f"start_from={start.path}")
    stopped = pretrain(further, stop=lambda: signal.SIGTERM)
    assert resume(start.path).checkpoint != begun
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(experiment, "_STARTED", set[Path]())  # as in another process
    assert pretrain(further).path == stopped.path
    monkeypatch.setattr(experiment, "_STARTED", set[Path]())
    named = config_in(home, "name=further", f"start_from={checkpoint.newest(start.path)}")
    assert pretrain(named).path != stopped.path  # whoever names a checkpoint means that one


@pytest.mark.parametrize(("where", "count"), [("in a group", 2), ("in a job", 3)])
def test_several_runs_of_two_processes_are_runs_of_their_own(output: Path, where: str, count: int) -> None:
    names, hashes = zip(*(line.split() for line in (output / where).read_text().splitlines()), strict=True)
    assert len(set(names)) == count
    assert len(set(hashes)) == 1


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("absent", r"nowhere\.txt"), ("few", r"train\.batch_rows = 1 rows cannot be divided among 2 processes")],
)
def test_a_mistake_ends_every_rank_before_there_is_a_run(output: Path, home: Path, name: str, pattern: str) -> None:
    for rank in range(2):
        assert re.search(pattern, (output / f"{name} {rank}").read_text())
    assert not list(home.glob(f"runs/*-{name}"))


def test_what_cleaning_dropped_is_logged_and_stands_in_the_results(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (home / "corpus.txt").read_text().splitlines()[:600]
    (home / "shouted.txt").write_text("".join(f"{line}\n{line.upper()}\n" for line in lines))
    overrides = (f"text.source.paths={home / 'shouted.txt'}", "vocabulary.lowercase=true", "train.budget.steps=1")
    different = len({" ".join(line.casefold().split()) for line in lines if line.strip()})
    repeated = 2 * sum(map(bool, map(str.strip, lines))) - different
    caplog.set_level("INFO")
    for _ in range(2):  # built, and found in the cache
        caplog.clear()
        run = pretrain(config_in(home, *overrides))
        assert caplog.messages.count(f"dropped: {repeated:,} duplicate documents") == 1
        assert run.results is not None
        assert run.results["dropped"] == {"duplicate documents": repeated}
