"""The records of a run in the tools that show it, read back by their own means; and tools that fail or are missing."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from torch import nn

from configs import UserError, read
from mlm.config import PretrainConfig, TrackerName
from mlm.experiment import pretrain
from mlm.tracking import run_directory, trackers
from mlm.tracking.metrics_logger import MetricsLogger, SamplePredictions
from mlm.tracking.trackers import IDS, TRACKERS, TensorBoard, Tracked, Trackers
from mlm.training.budget import TrainingLength, TrainingProgress
from tests.mlm.samples import CPU
from tests.mlm.tracking.test_metrics_logger import metrics

RESULTS = {"heldout": {"loss": 0.25, "bits_per_byte": None}, "steps": 3, "weights_sha256": "0f"}


class Shown(NamedTuple):
    """A tool's record of a run."""

    points: Sequence[tuple[int, float]]
    """Steps and values of train/loss."""
    heldout: Sequence[tuple[int, float]]
    results: float
    """That is results/heldout/loss."""
    row_length: int
    """The setting data.row_length."""
    texts: int
    ids: set[str]
    """Ids of all runs."""


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run: protocol buffers in a log of LevelDB's format, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def shown_by_wandb(run: Path) -> Shown:
    points: dict[str, list[Any]] = {"train/loss": [], "heldout/loss": []}
    texts, ids, row_length, results = 0, set[str](), 0, 0.0
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
                settings = {item.key: item.value_json for item in record.run.config.update}
                row_length = json.loads(settings["data"])["row_length"]
            elif kind == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                for name in points.keys() & row.keys():
                    points[name].append((row["step"], row[name]))
                texts += any(name.startswith("filled-in blanks") for name in row)
            elif kind == "summary":
                found = {item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update}
                results = float(found.get("results/heldout/loss", results))
    return Shown(points["train/loss"], points["heldout/loss"], results, row_length, texts, ids)


def shown_by_mlflow(run: Path) -> Shown:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mlm")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    (one,) = found
    assert one.info.status == "FINISHED"

    def history(name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(one.info.run_id, name)]

    (result,) = history("results/heldout/loss")
    row_length, texts = (
        int(one.data.params["data.row_length"]),
        client.list_artifacts(one.info.run_id, "filled-in blanks"),
    )
    ids = {one.info.run_id for one in found}
    return Shown(history("train/loss"), history("heldout/loss"), result[1], row_length, len(texts), ids)


def shown_by_trackio(run: Path) -> Shown:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    found = [one for one in trackio.Api().runs("mlm") if one.name.startswith(run.name)]
    (one,) = found
    logs = SQLiteStorage.get_logs("mlm", one.name, run_id=one.id)

    def history(name: str) -> list[tuple[int, float]]:
        return [(log["step"], log[name]) for log in logs if name in log]

    assert one.config is not None
    (result,) = history("results/heldout/loss")
    row_length, texts = one.config["data"]["row_length"], len(history("filled-in blanks"))
    return Shown(history("train/loss"), history("heldout/loss"), result[1], row_length, texts, {one.name})


READERS = {"wandb": shown_by_wandb, "mlflow": shown_by_mlflow, "trackio": shown_by_trackio}


def opened(run: Path, tracking: Sequence[str], start: int = 0) -> MetricsLogger:
    run.mkdir(exist_ok=True)
    config = read(PretrainConfig, None, [f"tracking=[{', '.join(tracking)}]"])
    logger = MetricsLogger(run, config, lambda step: "", lambda share: share, 1.0, TrainingProgress(start))
    logger.started(CPU, TrainingLength(steps=3), TrainingProgress(start))
    return logger


def test_every_tool_that_a_recipe_may_name_is_in_the_table() -> None:
    assert set(TRACKERS) == set(get_args(TrackerName)) == {"tensorboard", *READERS}


@pytest.mark.filterwarnings("ignore")  # what the tools' own packages use
@pytest.mark.parametrize("name", READERS)
def test_a_tool_shows_a_run_that_was_stopped_and_resumed_as_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(TRACKERS[name].package, reason=f"the extra {name} is not installed")  # type: ignore[index]
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    run = tmp_path / tmp_path.name
    first = opened(run, [name])
    first.log(TrainingProgress(1), metrics(loss=3.0))
    first.log(TrainingProgress(2), metrics(loss=2.0))
    first.close(None)
    ids = run_directory.read_json(run / IDS)
    second = opened(run, [name], start=2)
    second.log(TrainingProgress(3), metrics(loss=1.0))
    second.evaluated(TrainingProgress(3), {"loss": 1.5, "accuracy": 0.5}, nn.Linear(1, 1))
    SamplePredictions(lambda model: "[a|b] <i>", second).evaluated(TrainingProgress(3), {}, nn.Linear(1, 1))
    second.close(RESULTS)
    second.close(None)  # as after an error: changes nothing
    assert run_directory.read_json(run / IDS) == ids
    points, heldout = [(1, 3.0), (2, 2.0), (3, 1.0)], [(3, 1.5)]
    assert READERS[name](run) == Shown(points, heldout, 0.25, 128, 1, set(ids.values()))
    assert [message for message in caplog.messages if "NOT WRITTEN" in message] == []
    assert not list(run.glob("events.*"))


class Failing(TensorBoard):
    """A tool whose server answers once."""

    package = "json"
    failures = Exception  # type: ignore[assignment]
    recovers = False
    asked = 0

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        Failing.asked += 1
        if step > 1:
            raise RuntimeError("no\nanswer")


def test_a_tool_that_fails_is_named_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", Failing)
    shown = Trackers(["mlflow", "tensorboard"], Tracked(tmp_path, {}))
    for step in (1, 2, 3):
        shown.log("train", {"loss": 1.0, "mfu": None}, step)
    shown.close(finished=True)
    (warning,) = caplog.messages
    assert warning.startswith("RECORD OF STEP 2 ON MLFLOW NOT WRITTEN (no answer): training continues")
    assert Failing.asked == 2


class Absent(TensorBoard):
    package = "no_such_package"


def test_a_tool_that_is_not_installed_stops_a_new_run_before_it_begins_and_no_resumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", Absent)
    with pytest.raises(UserError, match=r"not installed: no_such_package.*tracking=wandb.*pip install.*\[wandb\]"):
        pretrain(read(PretrainConfig, None, [f"runs={tmp_path / 'runs'}", "tracking=wandb"]))
    assert not (tmp_path / "runs").exists()
    Trackers(["wandb"], Tracked(tmp_path, {}, start=5)).close(finished=True)
    assert len(caplog.messages) == 1
    assert "[wandb]" in caplog.messages[0]


def test_a_wrong_name_of_a_tool_is_an_error_that_lists_them() -> None:
    with pytest.raises(UserError, match=r"tracking.*'tensorboard', 'wandb', 'mlflow' or 'trackio'"):
        read(PretrainConfig, None, ["tracking=[tensorboard, clearml]"])
    assert read(PretrainConfig, None, ["tracking=trackio"]).tracking == ("trackio",)
    assert read(PretrainConfig, None, ["tracking=[]"]).tracking == ()


def test_numbers_among_results_have_names_with_their_path() -> None:
    found = dict(trackers._numbers({"a": {"b": 1, "c": None, "d": {"e": 0.5}}, "f": "text"}))
    assert found == {"results/a/b": 1.0, "results/a/d/e": 0.5}
