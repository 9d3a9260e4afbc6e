"""A run is found and used from any directory, by any of its folders, beside whatever else lies in `runs`."""

import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from configs import UserError, read
from finetune import encoders, saved_model
from finetune.encoders import EncoderChoice
from mlm import evaluate, fill_mask, status
from mlm.build import build
from mlm.checkpoint import checkpoint, warm_start
from mlm.config import PretrainConfig
from mlm.experiment import config_of, pretrain, resume
from mlm.tracking import run_directory
from tests.mlm.runs import TINY, config_in, write_corpus
from tests.mlm.samples import CPU
from tests.processes import run_module
from tests.tokenizer.hub import COMMIT, serving
from tests.tokenizer.samples import prose
from tokenizer.sources import Hub


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a text and a run of it that was started there by relative paths."""
    folder, before = tmp_path_factory.mktemp("work[1]"), Path.cwd()
    write_corpus(folder / "corpus.txt")
    os.chdir(folder)
    try:
        pretrain(config_in(Path(), "name=first", "text.source.paths=corp*.txt", "train.budget.steps=20"))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def moved(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the run in a copy of that folder, its results removed; the working directory is another one."""
    shutil.copytree(work / "runs", tmp_path / "copy" / "runs")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    (run,) = (tmp_path / "copy" / "runs").glob("*-first")
    (run / run_directory.RESULTS).unlink()
    return run


def evaluated(path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    capsys.readouterr()
    evaluate.main([str(path), "--json", *overrides])
    return capsys.readouterr().out


def test_a_run_is_resumed_and_evaluated_from_another_directory(
    work: Path, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (original,) = (work / "runs").glob("*-first")
    done = resume(moved)
    assert done.results is not None
    assert done.results["weights_sha256"] == run_directory.read_json(original / "results.json")["weights_sha256"]
    assert evaluated(moved, capsys) == evaluated(original, capsys)
    assert list(Path().iterdir()) == []


def test_where_the_text_is_gone_its_shards_are_used_and_that_is_said(
    work: Path, moved: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = evaluated(moved, capsys)
    (work / "corpus.txt").rename(work / "away")
    try:
        with caplog.at_level(logging.INFO):
            assert evaluated(moved, capsys) == before
        assert [line for line in caplog.messages if "is gone" in line and "shards-" in line]
        assert resume(moved).results is not None
        shutil.rmtree(moved.parent / "cache")
        with pytest.raises(UserError, match=r"corp"):
            evaluate.main([str(moved)])
    finally:
        (work / "away").rename(work / "corpus.txt")


def test_a_run_on_a_data_set_of_the_hub_goes_on_with_the_commit_that_it_began_with(work: Path, tmp_path: Path) -> None:
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.txt}\n---\n"
    text, later = (work / "corpus.txt").read_bytes(), b"Something else.\n" * 99
    settings = (*TINY, "text.source={kind: hub, name: me/tiny}", "train.budget.steps=20", "name=hub")
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    with serving("me/tiny", {"README.md": card, "train.txt": text}) as address:
        paused = run_module(
            tmp_path, "mlm.pretrain", *settings, "--until", "10", environment=environment | {"HF_ENDPOINT": address}
        )
    assert paused.returncode == 0, paused.stderr
    (run,) = (tmp_path / "runs").glob("*-hub")
    source = config_of(run).text.source
    assert isinstance(source, Hub)
    assert source.revision == COMMIT
    with serving("me/tiny", {"README.md": card, "train.txt": later}, newest="b" * 40) as address:
        words = ("mlm.pretrain", "--resume", run)
        resumed = run_module(tmp_path, *words, environment=environment | {"HF_ENDPOINT": address})
    assert resumed.returncode == 0, resumed.stderr


def test_a_text_that_has_changed_is_no_text_that_is_gone(work: Path, moved: Path) -> None:
    text = (work / "corpus.txt").read_bytes()
    (work / "corpus.txt").write_bytes(text + b"One sentence more.\n")
    try:
        with pytest.raises(UserError, match="is not the text that the run was trained on"):
            evaluate.main([str(moved)])
    finally:
        (work / "corpus.txt").write_bytes(text)


def test_a_run_is_measured_on_another_text(
    work: Path, moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n".join(prose(200)), encoding="utf-8")
    own, on_other = evaluated(moved, capsys), f"text.source.paths={other}"
    before = json.loads(evaluated(moved, capsys, on_other))
    assert json.loads(own).keys() == before.keys()
    assert before != json.loads(own)
    fewer = json.loads(evaluated(moved, capsys, "evaluation.words=0", "masking.rate=0.3", on_other))
    assert fewer["bits_per_byte"] is None
    assert fewer["masks"]["token"]["all"]["targets"] > 1.5 * before["masks"]["token"]["all"]["targets"]
    assert evaluated(moved, capsys, f"text.source.paths={work / 'corpus.txt'}") == own  # the run's text by another name
    evaluate.main([str(moved), on_other])
    assert "not the one that the run was trained on" in capsys.readouterr().err
    for words, reason in [
        (["model.encoder.width=8", on_other], r"only text, masking, evaluation and data\.row_length"),
        (["model=null"], r"only text, masking, evaluation and data\.row_length"),
        (["text.sauce=1"], r"unknown key text\.sauce"),
        ([str(other)], "at most one run"),
        (["text.source.paths=none.txt"], r"none\.txt"),
    ]:
        with pytest.raises(UserError, match=reason):
            evaluate.main([str(moved), *words])


def test_a_run_without_a_text_of_its_own_asks_for_one(
    moved: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = run_directory.read_json(moved / run_directory.ENVIRONMENT)
    environment["data"] = {}
    run_directory.write_json(moved / run_directory.ENVIRONMENT, environment)
    with pytest.raises(UserError, match=r"has no text of its own: name one, as text\.source\.kind=files"):
        evaluate.main([str(moved)])
    assert json.loads(evaluated(moved, capsys, f"text.source.paths={work / 'corpus.txt'}"))["bits_per_byte"] > 0


def test_a_checkpoint_stands_for_its_run(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = checkpoint.completed(moved)
    for folder in (first, last):
        assert checkpoint.run_of(folder) == moved
        assert checkpoint.resolve(folder) == folder
        assert status.status(checkpoint.run_of(folder))["step"] == 20
        status.main([str(folder)])
        fill_mask.main(["the [MASK] sleeps", "--run", str(folder)])
        assert folder.name in capsys.readouterr().err
        assert encoders.resolve(EncoderChoice(run=str(folder)), Path("runs")).run == str(folder)
    assert evaluated(first, capsys) != evaluated(last, capsys) == evaluated(moved, capsys)
    os.chdir(last)
    assert checkpoint.run_of(Path()) == moved
    assert resume(first).path == moved
    assert (moved / run_directory.RESULTS).is_file()


def test_a_link_to_a_checkpoint_and_the_folder_of_all_stand_for_the_run(moved: Path) -> None:
    first, _ = checkpoint.completed(moved)
    Path("latest").symlink_to(first)
    assert checkpoint.run_of(Path("latest")) == moved
    assert checkpoint.resolve(Path("latest")) == Path("latest")
    assert checkpoint.run_of(moved / checkpoint.CHECKPOINTS) == moved
    assert checkpoint.resolve(moved / checkpoint.CHECKPOINTS) == checkpoint.newest(moved)
    further = read(PretrainConfig, None, [f"start_from={moved / checkpoint.CHECKPOINTS}"])
    assert warm_start.resolve(further).start_from == str(checkpoint.newest(moved))
    os.chdir(first)
    assert checkpoint.run_of(Path("..")) == moved
    (first / "manifest.json").unlink()
    with pytest.raises(UserError, match="has no checkpoint"):  # the newest is not what was named
        checkpoint.resolve(first)


def test_a_link_to_a_run_is_evaluated_by_the_cache_beside_the_run(
    moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("link").symlink_to(moved)
    assert evaluated(Path("link"), capsys) == evaluated(moved, capsys)
    assert list(Path().iterdir()) == [Path("link")]


def test_the_compiler_that_the_environment_names_is_the_only_one(
    moved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "absent-compiler")
    config = config_of(moved).model_copy(update={"runs": str(moved.parent)})
    config = config.model_copy(update={"train": config.train.model_copy(update={"compile": True})})
    assert not build(config, CPU).task.compiled
    assert [line for line in caplog.messages if "absent-compiler" in line]


def test_a_checkpoint_outside_of_a_run_is_used_alone(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(checkpoint.newest(moved), Path("alone"))
    assert checkpoint.run_of(folder) == folder
    fill_mask.main(["the [MASK] sleeps", "--run", str(folder)])
    with pytest.raises(UserError, match=r"alone"):
        status.main([str(folder)])


def strays(runs: Path, run: Path) -> None:
    """Put everything into `runs` that is no run, each of it newer than any."""
    for name, config in (("metrics", None), ("empty", ""), ("copied", "half: ["), ("tuning", "head:\n  kind: cnn\n")):
        (runs / name).mkdir()
        (runs / name / run_directory.METRICS).write_text('{"side": "train", "step": 1}\n')
        if config is not None:
            (runs / name / checkpoint.CONFIG).write_text(config)
    half = runs / "half" / checkpoint.CHECKPOINTS / "step-000000020"
    half.mkdir(parents=True)
    shutil.copy(run / checkpoint.CONFIG, runs / "half")
    shutil.copy(checkpoint.newest(run) / "manifest.json", half)
    shutil.copytree(run / checkpoint.CHECKPOINTS, runs / "without" / checkpoint.CHECKPOINTS)
    (runs / "file").touch()
    (runs / "broken").symlink_to("nowhere")
    (runs / "tuning" / "model").mkdir()
    shutil.copy(checkpoint.newest(run) / "manifest.json", runs / "tuning" / "model")
    for path in runs.glob(f"*/{checkpoint.CONFIG}"):
        if path.parent != run:
            os.utime(path, (2e9, 2e9))


def test_what_is_no_run_is_passed_over(
    moved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    strays(moved.parent, moved)
    monkeypatch.chdir(moved.parents[1])
    assert run_directory.newest() == Path("runs") / moved.name
    assert [line for line in caplog.messages if str(Path("runs/half")) in line]
    status.main(["--json"])
    assert json.loads(capsys.readouterr().out)["step"] == 20
    assert encoders.resolve(EncoderChoice(), Path("runs")).run == f"runs/{moved.name}/checkpoints/step-000000020"
    with pytest.raises(UserError, match="no finished fine-tuning run"):
        saved_model.newest(Path("runs"))


def test_a_folder_of_runs_may_be_absent(tmp_path: Path) -> None:
    for newest in (run_directory.newest, saved_model.newest):
        with pytest.raises(UserError, match="absent"):
            newest(tmp_path / "absent")


@pytest.mark.parametrize(
    ("git", "diff"),
    [
        (r"printf 'caf\351\000'", "caf\ufffd\0"),
        ("echo dubious ownership >&2; exit 128", None),
        ("yes", "y\ny\n"),
        (None, None),
    ],
)
def test_whatever_git_answers_is_recorded(
    git: str | None, diff: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    if git is not None:
        program.write_text(f"#!/bin/sh\nPATH={os.environ['PATH']}\n{git}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    found = run_directory.environment(CPU)["git_diff"]
    assert found == diff or (diff == "y\ny\n" and found.startswith(diff) and len(found) < 1_000_100)
    run_directory.write_json(tmp_path / "environment.json", {"git_diff": found})
    assert run_directory.read_json(tmp_path / "environment.json") == {"git_diff": found}


def test_git_is_asked_about_this_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = []
    for name in ("ours", "other"):
        git = ["git", "-C", str(tmp_path / name), "-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", "init", "-q", tmp_path / name], check=True)
        (tmp_path / name / "code.py").write_text(f"{name} = 1\n")
        subprocess.run([*git, "add", "code.py"], check=True)
        subprocess.run([*git, "commit", "-qm", name], check=True)
        subprocess.run([*git, "config", "color.ui", "always"], check=True)
        (tmp_path / name / "code.py").write_text(f"{name} = 2\n")
        commits.append(subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip())
    monkeypatch.setattr(run_directory, "__file__", str(tmp_path / "ours" / "code.py"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))  # as in a hook of git
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    found = run_directory.environment(CPU)
    assert found["git_commit"] == commits[0]
    assert found["git_diff"].endswith("\n-ours = 1\n+ours = 2\n")
    monkeypatch.setattr(run_directory, "__file__", str(tmp_path / "ours" / "installed.py"))
    found = run_directory.environment(CPU)
    assert (found["git_commit"], found["git_diff"]) == (None, None)


def test_a_command_line_of_any_bytes_is_recorded(tmp_path: Path) -> None:
    command = ["python", os.fsdecode(b"caf\xe9.csv"), "'\"\n=*?["]
    run_directory.write_json(tmp_path / "environment.json", {"command": command})
    (tmp_path / "environment.json").read_text(encoding="utf-8")
    assert run_directory.read_json(tmp_path / "environment.json") == {"command": command}


def test_a_run_whose_name_is_no_text_is_refused_in_one_line(moved: Path) -> None:
    odd = Path(os.fsdecode(b"caf\xe9"))
    shutil.copytree(moved, odd / "x")
    for use in (resume, checkpoint.resolve, lambda path: status.main([str(path)])):
        with pytest.raises(UserError, match="not UTF-8"):
            use(odd / "x")
