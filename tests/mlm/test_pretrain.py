"""The commands that a user runs, as real processes where a process is what is tested."""

import errno
import fcntl
import json
import math
import os
import pickle
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import Any
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import UserError, command, read
from mlm import evaluate
from mlm import pretrain as entry
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import MANIFEST, read_manifest
from mlm.config import PretrainConfig
from mlm.distributed.world import devices
from mlm.tracking import run_directory
from mlm.tracking.run_directory import lock
from tests import processes
from tests.mlm.runs import TINY, heldout_curve, mistake, pretrain, records, results, run, write_corpus
from tests.mlm.samples import slow_in
from tests.processes import ROOT, TIMEOUT_SECONDS, Code, call, finish, run_module, start
from tests.unread import unread
from tokenizer.shards.format import record


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus and one finished run, of a process of its own."""
    folder = tmp_path_factory.mktemp("home")
    write_corpus(folder / "corpus.txt")
    pretrain(folder, "name=first", "train.budget.steps=60", "optim.lr=5e-3", call=run_module)
    return folder


@pytest.fixture(scope="module")
def first(home: Path) -> Path:
    """Return the finished run."""
    return next((home / "runs").glob("*-first"))


def test_a_run_directory_holds_the_documented_files(first: Path) -> None:
    values = results(first)
    assert set(values["heldout"]) == {
        "loss",
        "accuracy",
        "bits_per_byte",
        "complete_bits_per_byte",
        "bits_per_sentence",
    }
    assert set(values["baselines"]["unigram"]) == set(values["baselines"]["bigram"]) == {"loss", "accuracy"}
    assert values["steps"] == 60
    assert values["heldout"]["loss"] < values["baselines"]["unigram"]["loss"]
    assert values["tokens_per_second"] == pytest.approx(values["tokens"] / values["seconds"])
    environment = json.loads((first / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["command"][1:3] == ["-m", "mlm.pretrain"]
    assert (first / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in checkpoint.newest(first).iterdir()} == {
        "weights.safetensors",
        "config.yaml",
        "tokenizer.json",
        "training_state.pt",
        "manifest.json",
    }


@pytest.mark.gpu
def test_on_a_gpu_every_command_does_its_work(home: Path, tmp_path: Path) -> None:
    path = pretrain(home, "name=gpu", "train.budget.steps=25", call=run_module)
    assert json.loads((path / "environment.json").read_text())["device"] == torch.cuda.get_device_name()
    compiled = [record["loss"] for record in records(path) if record["side"] == "heldout"]
    assert results(path)["heldout"]["loss"] == pytest.approx(compiled[-1], rel=0.01)  # measured by layers as they are
    shutil.rmtree(checkpoint.newest(path))
    table = "\n".join(f"cat number {n} {'meows' if n % 2 else 'barks'},{n % 2}" for n in range(60))
    (tmp_path / "train.csv").write_text("text,label\n" + table)
    labelled = ("data.kind=labelled", "data.train=train.csv", "data.label=label", "encoder.dropout=0.1")
    for module, words in (
        ("mlm.pretrain", ["--resume", str(path)]),
        ("mlm.evaluate", [str(path)]),
        ("mlm.fill_mask", ["the [MASK] meows", "--run", str(path)]),
        ("finetune.cnn_head", [f"encoder.run={path}", *labelled, "train.epochs=1"]),
        ("finetune.predict", []),
    ):
        folder = home if module.startswith("mlm") else tmp_path
        done = run_module(folder, module, *words, text="a text")
        assert done.returncode == 0, done.stderr
    assert results(path)["steps"] == 25


def test_metrics_and_tensorboard_agree(first: Path) -> None:
    board = EventAccumulator(str(first))
    board.Reload()
    training = {"loss", "accuracy", "lr", "gradient_norm", "tokens_per_second", "mfu", "data_wait_share"}
    expected = {
        "train": training | {"memory_bytes", "skipped_updates"},
        "heldout": {"loss", "accuracy"},
    }
    for side, names in expected.items():
        mine = [record for record in records(first) if record["side"] == side]
        for name in names:
            events = board.Scalars(f"{side}/{name}")
            assert [event.step for event in events] == [record["step"] for record in mine]
            assert [event.value for event in events] == pytest.approx([record[name] for record in mine], rel=1e-6)
    assert [step for step, _ in heldout_curve(first)] == list(range(0, 61, 10))


def test_held_out_sentences_are_shown_unmasked_except_for_their_blanks(home: Path, first: Path) -> None:
    board = EventAccumulator(str(first))
    board.Reload()
    corpus = set((home / "corpus.txt").read_text().splitlines())
    events = board.Tensors("filled-in blanks/text_summary")
    shown = [line for event in events for line in event.tensor_proto.string_val[0].decode().split("\n\n")]
    assert len(shown) > 20
    for line in shown:
        assert re.sub(r"\[([^\]|]*\|)?([^\]|]*)\]", r"\2", line) in corpus


def test_the_same_command_gives_the_same_weights_and_reuses_text_and_tokenizer(home: Path, first: Path) -> None:
    def built() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (home / "runs" / "cache").rglob("*")}

    before = built()
    again = pretrain(home, "name=again", "train.budget.steps=60", "optim.lr=5e-3")
    assert results(again)["weights_sha256"] == results(first)["weights_sha256"]
    assert built() == before


def test_a_finished_run_resumes_to_a_no_op(home: Path, first: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file() and path.name != ".lock"}

    before = state()
    done = run(home, "--resume", str(first))
    assert done.returncode == 0
    assert "is finished" in done.stdout
    assert state() == before


@pytest.mark.parametrize(
    ("threads", "settings"),
    [
        (1, ("optim.kind=muon", "model.encoder.dropout=0.1")),
        (2, ("optim.kind=adamw", "train.batch_rows=32")),
    ],
)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    home: Path, threads: int, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`test_experiment` stops and resumes each optimizer."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    shutil.copy(home / "corpus.txt", tmp_path)
    shutil.copytree(home / "runs" / "cache", tmp_path / "runs" / "cache")
    settings = (*settings, "train.budget.steps=100")
    whole = pretrain(tmp_path, "name=whole", *settings, call=run_module)
    process = started(tmp_path, "name=broken", *settings, stderr=subprocess.PIPE)
    broken = wait_for_step(tmp_path, "broken", 20)
    process.send_signal(signal.SIGINT)
    errors = finish(process).stderr
    assert process.returncode == command.EXIT_SIGNAL + signal.SIGINT, errors
    assert "Traceback" not in errors
    assert (", 2 threads\n" in errors) == (threads == 2)
    assert not (broken / "results.json").exists()
    resumed = run_module(tmp_path, "mlm.pretrain", "--resume", broken)
    assert resumed.returncode == 0, resumed.stderr
    assert results(broken)["weights_sha256"] == results(whole)["weights_sha256"]
    assert results(broken)["heldout"] == results(whole)["heldout"]
    assert heldout_curve(broken) == heldout_curve(whole)


def started(folder: Path, *words: str, before: Sequence[str] = (), **streams: Any) -> "subprocess.Popen[str]":
    """Start to pretrain a tiny encoder in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return start([*before, sys.executable, "-m", "mlm.pretrain", *TINY, *words], cwd=folder, env=environment, **streams)


@pytest.mark.parametrize(("kind", "number"), [("a closed pipe", signal.SIGINT), ("a hung-up terminal", signal.SIGHUP)])
def test_a_signal_that_takes_the_reader_too_saves_the_run(
    home: Path, kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    """As Ctrl-C does under `| tee log`: both get it, and tee ends at once."""
    shutil.copy(home / "corpus.txt", tmp_path)
    shutil.copytree(home / "runs" / "cache", tmp_path / "runs" / "cache")
    quiet = ("train.intervals.log_steps=5", "train.intervals.checkpoint_steps=100000")
    with unread(kind) as stream:
        process = started(tmp_path, "name=told", "train.budget.steps=100000", *quiet, stdout=stream, stderr=stream)
    path = wait_for_step(tmp_path, "told", 20)
    process.send_signal(number)
    assert finish(process).returncode == 128 + number
    (saved,) = (path / "checkpoints").iterdir()
    assert read_manifest(saved).step >= 20


def test_under_nohup_a_run_whose_terminal_is_gone_trains_to_its_end(home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "corpus.txt", tmp_path)
    shutil.copytree(home / "runs" / "cache", tmp_path / "runs" / "cache")
    with unread("a closed pipe") as stream:
        streams = {"stdout": stream, "stderr": stream}
        process = started(tmp_path, "name=told", "train.budget.steps=30", before=["nohup"], **streams)
    path = wait_for_step(tmp_path, "told", 10)
    process.send_signal(signal.SIGHUP)
    assert finish(process).returncode == 0
    assert results(path)["steps"] == 30


@pytest.mark.parametrize("words", [["mlm.status", "{run}"], ["mlm.fill_mask", "--run", "{run}", "a [MASK]"]])
def test_a_command_whose_result_is_not_read_ends_with_the_code_of_sigpipe(first: Path, words: list[str]) -> None:
    with unread("a closed pipe") as stream:
        process = processes.run([sys.executable, "-m", *(word.format(run=first) for word in words)], stdout=stream)
    assert process.returncode == command.EXIT_UNREAD == 141


def wait_for_step(folder: Path, name: str, step: int) -> Path:
    """Wait until a run has logged `step`, and return its directory."""
    until = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < until:
        for path in (folder / "runs").glob(f"*-{name}/metrics.jsonl"):
            if f'"step": {step},' in path.read_text():
                return path.parent
        time.sleep(0.01)
    raise AssertionError(f"{name} did not reach step {step}")


def test_saving_removes_the_remains_of_a_killed_save_and_nothing_else(home: Path, first: Path, tmp_path: Path) -> None:
    shutil.copy(home / "corpus.txt", tmp_path)
    path = shutil.copytree(first, tmp_path / "run")
    (path / "results.json").unlink()
    shutil.rmtree(checkpoint.newest(path))
    folder = path / "checkpoints"
    (folder / "step-000000055.partial").mkdir()
    (folder / "best").mkdir()
    (folder / "notes.txt").write_text("mine")
    done = run(tmp_path, "--resume", str(path))
    assert done.returncode == 0, done.stderr
    names = sorted(entry.name for entry in folder.iterdir())
    assert names == ["best", "notes.txt", "step-000000050", "step-000000060"]
    assert results(path)["weights_sha256"] == results(first)["weights_sha256"]


def on_a_machine(
    folder: Path, *arguments: str, slow: str = "float64", has_bfloat16: bool = True, module: str = "mlm.pretrain"
) -> subprocess.CompletedProcess[str]:
    """Run a command on a processor that is slow in one precision, or that has no bfloat16."""
    with (
        slow_in(getattr(torch, slow)),
        mock.patch.object(torch.cpu, "_is_avx512_bf16_supported", return_value=has_bfloat16),
        mock.patch.object(torch.cpu, "_is_amx_tile_supported", return_value=has_bfloat16),
    ):
        return run(folder, *arguments, module=module)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return a precision, and a finished run that began where it is the faster one."""
    folder = tmp_path_factory.mktemp(request.param)
    write_corpus(folder / "corpus.txt")
    slow = {"float32": "bfloat16", "bfloat16": "float32"}[request.param]
    done = on_a_machine(folder, *TINY, "train.budget.steps=20", slow=slow)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "runs").glob("*-*")
    return request.param, path


def interrupted(path: Path, folder: Path) -> Path:
    """Return a copy of a run as it was before its last checkpoint."""
    shutil.copy(path.parents[1] / "corpus.txt", folder)
    copied = shutil.copytree(path, folder / "run")
    (copied / "results.json").unlink()
    shutil.rmtree(checkpoint.newest(copied))
    return copied


def test_a_run_resumes_in_its_recorded_precision(whole: tuple[str, Path], tmp_path: Path) -> None:
    precision, path = whole
    copied = interrupted(path, tmp_path)
    done = on_a_machine(tmp_path, "--resume", "run", slow=precision)
    assert done.returncode == 0, done.stderr
    assert f"device cpu in {precision}" in done.stderr
    assert results(copied)["weights_sha256"] == results(path)["weights_sha256"]
    judged = on_a_machine(tmp_path, "run", "--json", slow=precision, module="mlm.evaluate")
    found = json.loads(judged.stdout)["masks"]["token"]["all"]["loss"]
    assert found == pytest.approx(results(path)["heldout"]["loss"], rel=1e-6)


def test_a_run_resumes_in_float32_with_a_warning_without_bfloat16(whole: tuple[str, Path], tmp_path: Path) -> None:
    precision, path = whole
    copied = interrupted(path, tmp_path)
    for text in [copied / "config.yaml", checkpoint.newest(copied) / "config.yaml"]:
        changed = text.read_text().replace("precision: auto", f"precision: {precision}")
        assert changed != text.read_text()
        text.write_text(changed)
    seal_again(checkpoint.newest(copied), "config.yaml")
    warning = "this cpu has no bfloat16 matrix products, which the run began in"
    for module, arguments in (("mlm.pretrain", ("--resume", "run")), ("mlm.evaluate", ("run",))):
        done = on_a_machine(tmp_path, *arguments, module=module, has_bfloat16=False)
        assert done.returncode == 0, done.stderr
        assert (warning in done.stderr) == (precision == "bfloat16")
    assert results(copied)["steps"] == 20
    went_on_in = json.loads((copied / "environment.json").read_text()).get("went_on_in")
    assert went_on_in == (None if precision == "float32" else "float32")


@pytest.mark.parametrize("name", ["precision", "data"])
@pytest.mark.parametrize("recorded", [None, "auto", 16])
def test_a_damaged_environment_is_named_with_its_key(
    name: str, recorded: object, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = interrupted(first, tmp_path)
    environment = json.loads((copied / "environment.json").read_text())
    (copied / "environment.json").write_text(json.dumps(environment | {name: recorded}))
    monkeypatch.chdir(tmp_path)
    for main, arguments in ((entry.main, ["--resume", "run"]), (evaluate.main, ["run"])):
        with pytest.raises(UserError, match=rf'^run/environment\.json .*"{name}"'):
            main(arguments)


def test_fill_mask_answers_arguments_and_standard_input(home: Path) -> None:
    sentence = "In barn number 7 the cat sleeps, and when it wakes the [MASK] [MASK]."
    asked = run(home, sentence, "--top", "3", "--json", module="mlm.fill_mask")
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["sentence"] == sentence
    assert [len(blank) for blank in answer["blanks"]] == [3, 3]
    for blank in answer["blanks"]:
        probabilities = [guess["probability"] for guess in blank]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1
    spaced = f" {sentence.replace(' ', '  ')}\t"
    given = f"\ufeff{sentence}\n\n no blank\n \n{spaced}\n"
    piped = run_module(home, "mlm.fill_mask", "--top", "3", "--json", text=given)
    assert [json.loads(line) for line in piped.stdout.splitlines()] == [answer, answer | {"sentence": spaced}]
    assert "no answer to 1 of" in mistake(piped)
    assert sum("' no blank'" in line for line in piped.stderr.splitlines()) == 1


def test_evaluate_agrees_with_the_runs_results(home: Path, first: Path) -> None:
    done = run(home, str(first), "--json", module="mlm.evaluate")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["masks"]["token"]["all"]["loss"] == pytest.approx(results(first)["heldout"]["loss"], rel=1e-6)
    assert scores["bits_per_byte"] == results(first)["heldout"]["bits_per_byte"]
    assert set(scores["masks"]) == {"token", "word", "span"}
    assert len({masks["all"]["loss"] for masks in scores["masks"].values()}) == 3
    table = [line.split() for line in run(home, str(first), module="mlm.evaluate").stdout.splitlines()]
    for unit in ("token", "word", "span"):
        near = run(home, str(first), "--by-position", f"masking.unit={unit}", "--json", module="mlm.evaluate")
        (nearest,) = json.loads(near.stdout)["positions"].values()
        for kind, found in scores["masks"][unit].items():
            shown = (f"{found['targets']:,}", f"{found['loss']:.3f}", f"{math.exp(found['loss']):.2f}")
            assert [unit, kind, *shown, f"{found['accuracy']:.1%}"] in table
        assert nearest["loss"] == pytest.approx(scores["masks"][unit]["all"]["loss"], rel=1e-6)
    targets = {kind: values["targets"] for kind, values in scores["masks"]["token"].items()}
    assert targets["all"] == targets["[MASK]"] + targets["random"] + targets["itself"]


def test_a_run_that_paused_ends_by_a_bare_resume_as_if_it_had_not(home: Path) -> None:
    whole, paused = (
        pretrain(home, f"name={name}", "train.budget.steps=30", *until)
        for name, until in (("whole", ()), ("paused", ("--until", "11")))
    )
    assert not (paused / "results.json").exists()
    assert [folder.name for folder in checkpoint.completed(paused)][-1] == "step-000000020"
    done = run(home, "--resume")
    assert done.returncode == 0, done.stderr
    assert results(paused)["heldout"] == results(whole)["heldout"]
    assert "--until 0: name a step from 1 on" in mistake(run(home, *TINY, "--until", "0"))


def test_evaluate_by_position_reads_rows_longer_than_the_runs(home: Path, first: Path) -> None:
    done = run(home, str(first), "--by-position", "--json", "--plot", "near.png", module="mlm.evaluate")
    assert done.returncode == 0, done.stderr
    (near,) = json.loads(done.stdout)["positions"].values()
    assert near["loss"] == pytest.approx(results(first)["heldout"]["loss"], rel=1e-6)
    assert (home / "near.png").read_bytes().startswith(b"\x89PNG")
    texts = [" ".join(["take the next word of it"] * 60)] * 8
    (home / "long.jsonl").write_text(
        "".join(json.dumps({"text": f"{place} {text}"}) + "\n" for place, text in enumerate(texts))
    )
    other = ("text.source.paths=long.jsonl", "text.segments=documents", "text.heldout_share=0.5", "data.row_length=300")
    shown = run(home, str(first), "--by-position", *other, module="mlm.evaluate")
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[1] for line in shown.stdout.splitlines()[1:]] == ["0-127", "128-255", "256-511"]
    assert "near.png" in mistake(run(home, str(first), "--by-position", "--plot", "near.png", module="mlm.evaluate"))
    assert "make nowhere" in mistake(
        run(home, str(first), "--by-position", "--plot", "nowhere/x.png", module="mlm.evaluate")
    )
    few = run(home, str(first), "--by-position", "masking.rate=1e-4", module="mlm.evaluate")
    assert "masking.rate = 0.0001 hides no token of the held-out rows" in mistake(few)
    assert "--by-position" in mistake(run(home, str(first), "--plot", "new.png", module="mlm.evaluate"))


def test_dry_run_shows_costs_and_the_first_batch_and_trains_nothing(home: Path) -> None:
    before = set((home / "runs").iterdir())
    done = run(home, *TINY, "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("parameters", "FLOPs a step", "estimate", "not padding", "epochs", "minutes", "8 H100", "[MASK]"):
        assert word in done.stdout
    projected = run(home, *TINY, "--dry-run", "--tokens", "1e9", "--machines", "64xH200")
    counts = json.loads(next((home / "runs" / "cache").glob("*/manifest.json")).read_text())["train"]
    expected = 1e9 * counts["text_bytes"] / counts["tokens"] / 2**30
    assert f" {expected:,.1f} GiB" in projected.stdout
    assert "64 H200" in projected.stdout
    for wrong in (["--tokens", "many"], ["--tokens", "nan"], ["--machines", "8xTPU"]):
        assert wrong[0] in mistake(run(home, *TINY, "--dry-run", *wrong))
    assert "--dry-run" in mistake(run(home, *TINY, "--tokens", "1e9"))
    assert set((home / "runs").iterdir()) == before


def test_a_printed_configuration_reads_back_equal(tmp_path: Path) -> None:
    printed = run(tmp_path, TINY[0], "--print-config", *TINY[1:]).stdout  # options may stand between settings
    (tmp_path / "printed.yaml").write_text(printed)
    assert "row_length: 64" in printed
    assert run(tmp_path, "--print-config", "printed.yaml").stdout == printed


MISTAKES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "misspelled key": (("optim.lrr=1",), r"optim\.lrr: .* optim\.lr\?"),
    "wrong type": (("train.batch_rows=many",), r"train\.batch_rows = 'many'"),
    "width and heads": (("model.encoder.width=30", "model.encoder.heads=4"), r"model\.encoder: .*30 .*4"),
    "warm-up over the budget": (("schedule.warmup=1.5",), r"schedule\.warmup = '1\.5'"),
    "sides over the budget": (
        ("schedule.warmup=0.5", "schedule.decay=0.6"),
        r"schedule: warmup \+ decay is 1\.1,",
    ),
    "window over the row": (("data.row_length=32",), r"evaluation\.window_bytes"),
    "no such YAML": (("missing.yaml",), r"missing\.yaml"),
    "two YAMLs": (("a.yaml", "b.yaml"), r"a\.yaml, b\.yaml"),
    "override without key": (("=3",), r"section\.key=value"),
    "no such text": (("text.source.paths=nowhere.txt",), r"nowhere\.txt"),
    "glob without match": (("text.source.paths=*.nothing",), r"\*\.nothing"),
    "vocabulary over the corpus": (("vocabulary.size=50000",), r"50,000.*vocabulary\.size"),
    "batch over the corpus": (("train.batch_rows=100000",), r"train\.batch_rows is 100000"),
    "resume with overrides": (("--resume", "runs", "name=x"), r"--resume"),
    "resume of no run": (("--resume", "nowhere"), r"nowhere .*config\.yaml"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, pattern = MISTAKES[name]
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["mlm.pretrain", *(() if "--resume" in arguments else TINY), *arguments])
    with pytest.raises(SystemExit) as ended:
        command.run(entry.main)
    assert ended.value.code == command.EXIT_MISTAKE
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(pattern, line)


def test_a_run_in_use_is_refused(home: Path, first: Path) -> None:
    with lock(first):
        assert f"process {os.getpid()}" in mistake(run(home, "--resume", str(first)))


def test_a_look_at_the_owner_of_a_run_keeps_nobody_from_it(first: Path) -> None:
    """`mlm.status` holds the lock for a moment, and may hold it longer on a busy machine."""
    with (first / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        Timer(0.1, looking.close).start()
        with lock(first):
            assert run_directory.owner(first) == f"process {os.getpid()} on {platform.node()}"


def test_a_full_disk_gets_one_line(home: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    words = (*TINY, "name=full", "train.budget.steps=10")
    line = mistake(run_module(home, "mlm.pretrain", *words, preexec_fn=small_files_only))
    assert os.strerror(errno.EFBIG) in line


def test_existing_shards_are_trained_on_without_their_text(home: Path, first: Path, tmp_path: Path) -> None:
    corpus, tokenizer = tmp_path / "corpus.txt", checkpoint.newest(first) / checkpoint.TOKENIZER
    shutil.copy(home / corpus.name, corpus)
    words = ("corpus.txt", "text.heldout_share=0.1", "--tokenizer", str(tokenizer), "--output", "shards")
    encoded = run(tmp_path, *words, module="tokenizer.encode")
    assert encoded.returncode == 0, encoded.stderr
    corpus.unlink()
    settings = [word for word in TINY if not word.startswith(("text.", "vocabulary."))]
    trained = ["name=sharded", "train.budget.steps=60", "optim.lr=5e-3", "data.shards=shards"]
    done = run(tmp_path, *settings, *trained)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "runs").glob("*-sharded")
    assert results(made)["weights_sha256"] == results(first)["weights_sha256"]
    texts = [read(PretrainConfig, path / checkpoint.CONFIG).text for path in (made, first)]
    assert [text.source.paths for text in texts] == [(str(folder / corpus.name),) for folder in (tmp_path, home)]  # type: ignore[union-attr]
    assert texts[0].model_dump(exclude={"source"}) == texts[1].model_dump(exclude={"source"})
    evaluated = run(tmp_path, module="mlm.evaluate")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "data.shards = shards" in mistake(run(tmp_path, *settings, *trained, "text.heldout_share=0.3"))
    learned = run(
        home, "corpus.txt", "--output", str(tmp_path / "other.json"), "--vocabulary", "270", module="tokenizer.train"
    )
    assert learned.returncode == 0, learned.stderr
    line = mistake(run(tmp_path, *settings, *trained, "data.tokenizer=other.json"))
    assert f"data.shards = {tmp_path / 'shards'}" in line
    assert "other.json" in line


@pytest.fixture
def copied(first: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run."""
    return shutil.copytree(first, tmp_path / "run")


@pytest.mark.parametrize("file", ["weights.safetensors", "tokenizer.json", "config.yaml"])
def test_a_damaged_checkpoint_is_refused(copied: Path, file: str) -> None:
    path = checkpoint.newest(copied) / file
    path.write_bytes(path.read_bytes()[:-1])
    line = mistake(run(copied.parent, "a [MASK].", "--run", str(copied), module="mlm.fill_mask"))
    assert str(path) in line


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(home: Path, copied: Path) -> None:
    expected = json.loads((copied / "results.json").read_text())["weights_sha256"]
    (copied / "results.json").unlink()
    path = checkpoint.newest(copied) / checkpoint.STATE
    path.write_bytes(path.read_bytes()[:-1])
    done = run(home, "--resume", str(copied))
    assert done.returncode == 0, done.stderr
    assert f"skipped: {path} " in done.stderr
    assert json.loads((copied / "results.json").read_text())["weights_sha256"] == expected


def test_a_run_whose_device_is_absent_goes_on_by_another_one(home: Path, copied: Path) -> None:
    absent = next(kind for kind in ("mps", "cuda") if kind not in devices())
    expected = json.loads((copied / "results.json").read_text())["weights_sha256"]
    (copied / "results.json").unlink()
    shutil.rmtree(checkpoint.newest(copied))  # so that there is something to train
    for folder in (copied, checkpoint.newest(copied)):
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("device: auto", f"device: {absent}"))
    seal_again(checkpoint.newest(copied), "config.yaml")
    done = run(home, "--resume", str(copied))
    assert done.returncode == 0, done.stderr
    assert f"device={absent}, on which {copied} began, is absent" in done.stderr
    assert json.loads((copied / "results.json").read_text())["weights_sha256"] == expected


def test_a_run_whose_checkpoints_are_all_damaged_is_not_resumed(home: Path, copied: Path) -> None:
    (copied / "results.json").unlink()
    for folder in checkpoint.completed(copied):
        path = folder / checkpoint.STATE
        path.write_bytes(path.read_bytes()[:-1])
    assert f"every checkpoint in {copied} " in mistake(run(home, "--resume", str(copied)))


def seal_again(folder: Path, name: str) -> None:
    """Make the manifest say of a changed file what is true of it now, as an attacker would."""
    manifest = read_manifest(folder)
    files = manifest.files | {name: record(folder / name)}
    (folder / MANIFEST).write_text(manifest.model_copy(update={"files": files}).sealed().model_dump_json())


@pytest.mark.parametrize("name", checkpoint.MODEL_FILES)
def test_no_file_of_a_model_from_elsewhere_is_unpickled(home: Path, copied: Path, name: str) -> None:
    folder = checkpoint.newest(copied)
    (folder / name).write_bytes(pickle.dumps(Code()))
    seal_again(folder, name)
    line = mistake(run(home, "a [MASK].", "--run", str(copied), module="mlm.fill_mask"))
    assert str(folder / name) in line
    assert not (home / "ran").exists()


@pytest.mark.parametrize("content", ["compressed", "pickled"])
def test_a_training_state_from_elsewhere_neither_fills_the_memory_nor_runs(
    home: Path, copied: Path, content: str
) -> None:
    (copied / "results.json").unlink()
    folder = checkpoint.newest(copied)
    path = folder / checkpoint.STATE
    if content == "compressed":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, bytes_ in members.items():
                archive.writestr(name, bytes(50_000_000) if name.endswith("/data/0") else bytes_)
        assert path.stat().st_size < 1_000_000
    else:
        path.write_bytes(pickle.dumps(Code()))
    seal_again(folder, checkpoint.STATE)
    assert str(path) in mistake(run(home, "--resume", str(copied)))
    assert not (home / "ran").exists()


def test_a_checkpoint_with_another_tokenizer_is_refused(home: Path, copied: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    done = run(home, "corpus.txt", "--output", str(other), "--vocabulary", "280", module="tokenizer.train")
    assert done.returncode == 0, done.stderr
    folder = checkpoint.newest(copied)
    shutil.copy(other, folder / checkpoint.TOKENIZER)
    seal_again(folder, checkpoint.TOKENIZER)
    assert f"{folder} do not fit" in mistake(run(tmp_path, "a [MASK].", "--run", str(copied), module="mlm.fill_mask"))


@pytest.mark.parametrize(
    ("sentence", "pattern"),
    [("no blank at all", r"\[MASK\].*'no blank at all'"), ("[MASK] " * 100, r"100 tokens.*\b64\b")],
)
def test_a_sentence_that_cannot_be_filled_is_refused(home: Path, sentence: str, pattern: str) -> None:
    assert re.search(pattern, mistake(run(home, sentence, module="mlm.fill_mask")))


def test_a_missing_run_gets_one_line(tmp_path: Path) -> None:
    assert "python -m mlm.pretrain" in mistake(run(tmp_path, "a [MASK].", module="mlm.fill_mask"))


def test_the_traceback_behind_an_error_is_shown_on_request(home: Path, first: Path, tmp_path: Path) -> None:
    copied = interrupted(first, tmp_path)
    folder = checkpoint.newest(copied)
    state = torch.load(folder / "training_state.pt", weights_only=True)
    del state["position"]
    torch.save(state, folder / "training_state.pt")
    seal_again(folder, "training_state.pt")
    line = mistake(run(tmp_path, "--resume", str(copied)))
    shown = call(tmp_path, "mlm.pretrain", "--resume", copied, environment={"MLM_TRACEBACK": "1"})
    assert shown.returncode == command.EXIT_MISTAKE
    assert "KeyError: 'position'" in shown.stderr
    assert "Traceback" in shown.stderr
    assert shown.stderr.splitlines()[-1] == line
