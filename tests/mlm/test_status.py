import errno
import fcntl
import json
from pathlib import Path

import pytest

from configs import UserError, files
from mlm import pretrain, status
from mlm.checkpoint import checkpoint
from mlm.tracking import run_directory

RECORDS = (
    {"side": "heldout", "step": 0, "loss": 6.0},
    {"side": "train", "step": 20, "loss": 5.5, "seconds": 10.0, "progress": 0.25, "tokens_per_second": 800.0}
    | {"skipped_in_all": 3},
)


def make(folder: Path) -> Path:
    (folder / "checkpoints" / "step-000000020").mkdir(parents=True)
    (folder / checkpoint.CONFIG).write_text("name: x\n")
    lines = [json.dumps(record) + "\n" for record in RECORDS]
    (folder / run_directory.METRICS).write_text(
        "".join(lines) + '{"side": "train", "st'
    )  # the last one is still being written
    return folder


def test_status_distinguishes_running_stopped_and_finished_runs(tmp_path: Path) -> None:
    path = make(tmp_path / "x")
    with run_directory.lock(path):
        running = status.status(path)
    assert running["state"] == "running"
    assert running["owner"].startswith("process ")
    assert running["seconds_left"] == 30.0
    stopped = status.status(path)
    assert (stopped["state"], stopped["owner"], stopped["seconds_left"]) == ("stopped", None, None)
    (path / run_directory.RESULTS).write_text("{}")
    assert status.status(path)["state"] == "finished"


def test_without_locks_a_run_is_used_and_its_status_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "_WARNED", set())
    path = make(tmp_path / "x")
    with run_directory.lock(path):
        assert status.status(path)["step"] == 20
    assert len([line for line in caplog.messages if "without locks" in line]) == 1


def test_status_shows_the_last_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "x")
    status.main([str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["loss"], found["heldout_loss"], found["skipped_updates"]) == (20, 5.5, 6.0, 3)
    assert found["checkpoint"].endswith("step-000000020")
    status.main([str(path)])
    shown = capsys.readouterr().out
    for part in ("stopped", "step 20 (25.0%)", "800 tokens/s", "loss 5.500, held-out 6.000", "3 updates skipped"):
        assert part in shown
    assert f"--resume {path}" in shown


def test_a_fine_tuning_run_is_refused_by_status_and_pretrain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "runs" / "pretrained")
    newer = make(tmp_path / "runs" / "tuned")
    (newer / checkpoint.CONFIG).write_text("name: y\nhead:\n  kind: cnn\n")
    monkeypatch.chdir(tmp_path)
    status.main([])
    assert capsys.readouterr().out.startswith("runs/pretrained: stopped")
    for refused in (status.main, pretrain.main):
        with pytest.raises(UserError, match=r"tuned is a fine-tuning run.* report\.txt.*environment\.json"):
            refused([str(newer)] if refused is status.main else ["--resume", str(newer)])
