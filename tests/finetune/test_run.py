"""Fine-tuning as a user runs it: real files, the whole way from a table to predictions."""

import csv
import json
import resource
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs import UserError
from finetune import cnn_head, linear_head, predict, saved_model
from finetune.compare import main as compare
from finetune.config import FinetuneConfig
from finetune.data.labelled import Labelled
from finetune.encoders import EncoderChoice
from finetune.evaluation import results
from finetune.experiment import finetune
from mlm.checkpoint import weights
from mlm.checkpoint.manifest import seal
from mlm.training.budget import TrainingProgress
from mlm.training.loop import Observer, StepMetrics
from tests.finetune import samples, tiny_published
from tests.processes import call, interrupted_in_training, run_module

FAST = ("head.dropout=0", "train.batch_examples=8", "optim.lr=3e-3", "train.epochs=6", "train.precision=float32")


def fine_tune(folder: Path, *overrides: str, main: Any = cnn_head.main) -> Path:
    """Fine-tune on sixty labelled sentences and return the run."""
    folder.mkdir(exist_ok=True)
    runs = folder / "runs"
    before = set(runs.glob("*"))
    table = folder / "train.csv"
    if not table.exists():
        samples.write_csv(table, 90)
    data = ("data.kind=labelled", f"data.train={table}", "data.label=target", f"runs={runs}", "name=test")
    main([*data, *FAST, *overrides])
    (made,) = set(runs.glob("*")) - before
    return made


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    return fine_tune(
        folder,
        f"encoder.run={run}",
        "head.filters=8",
        "splits.kind=folds",
        "splits.folds=2",
        "train.seeds=[0, 1]",
        "train.early_stopping.metric=loss",
        "control=true",
    )


def test_a_run_holds_all_that_a_person_reads(tuned: Path) -> None:
    assert {path.name for path in tuned.iterdir()} >= {
        "config.yaml",
        "confusion.png",
        "curves.png",
        "environment.json",
        "metrics.jsonl",
        "mistakes.csv",
        "model",
        "report.txt",
        "results.json",
        "trials",
    }
    environment = json.loads((tuned / "environment.json").read_text())
    assert environment["processes"] == 1
    assert environment["precision"] in ("bfloat16", "float32")
    for picture in ("confusion.png", "curves.png"):
        assert (tuned / picture).read_bytes().startswith(b"\x89PNG")
    report = (tuned / "report.txt").read_text()
    for word in ("this encoder", "random encoder", "TF-IDF", "majority class", "precision", "predicted", "trained"):
        assert word in report


def test_results_hold_every_trial_and_its_mean_and_spread(tuned: Path) -> None:
    found = json.loads((tuned / "results.json").read_text())
    assert [(trial["fold"], trial["seed"]) for trial in found["trials"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for part in ("validation", "test"):
        for metric in ("accuracy", "f1", "f1_macro", "mcc"):
            values = [trial[part][metric] for trial in found["trials"]]
            mean = sum(values) / 4
            deviation = (sum((value - mean) ** 2 for value in values) / 3) ** 0.5
            assert found[part][metric] == pytest.approx({"mean": mean, "std": deviation})
    assert found["test"]["accuracy"]["mean"] > 0.9
    assert set(found["baselines"]) == {"majority", "tfidf", "random_encoder"}
    control = found["baselines"]["random_encoder"]
    assert [(trial["fold"], trial["seed"]) for trial in control["trials"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    differences = [
        ours["test"]["loss"] - theirs["test"]["loss"]  # what its best weights were chosen by
        for ours, theirs in zip(found["trials"], control["trials"], strict=True)
    ]
    assert control["difference"]["mean"] == pytest.approx(sum(differences) / 4)
    assert control["difference"]["pairs"] == 4
    assert control["difference"]["freedom"] == 1  # of two folds
    assert found["parameters"]["trained"] == found["parameters"]["all"] > 0
    assert len({trial["weights_sha256"] for trial in found["trials"]}) == 4


def test_the_saved_model_is_the_trial_that_validated_best(tuned: Path) -> None:
    found = results.read(tuned)
    manifest = json.loads((tuned / "model" / "manifest.json").read_text())
    losses = [trial.validation.loss or 0.0 for trial in found.trials if trial.validation is not None]
    best = found.trials[int(np.argmin(losses))]
    model = saved_model.load(tuned, torch.device("cpu"))
    assert weights.sha256(weights.host_state_dict(model.classifier)) == best.weights_sha256
    assert model.class_names == ("0", "1")
    assert manifest["files"]["weights.safetensors"]["sha256"] == best.weights_sha256


def test_an_interrupted_run_is_not_the_newest_though_it_has_a_model(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path / tuned.name)
    assert saved_model.newest(tmp_path) == tmp_path / tuned.name
    (tmp_path / tuned.name / "results.json").unlink()
    with pytest.raises(UserError, match="there is no finished fine-tuning run"):
        saved_model.newest(tmp_path)


def test_without_a_validation_part_all_is_trained_on_and_the_last_weights_are_kept(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "finetune")
    monkeypatch.chdir(tmp_path)  # where the comparison draws its picture
    settings = (f"encoder.run={run}", "head.filters=8", "train.epochs=2", "splits.validation=0")
    made = fine_tune(tmp_path, *settings)
    found = json.loads((made / "results.json").read_text())
    assert (found["validation"], found["trials"][0]["validation"]) == (None, None)
    assert (found["data"]["train"], found["data"]["validation"], found["trials"][0]["epochs"]) == (81, 0, 2)
    assert saved_model.load(made, torch.device("cpu")).class_names == ("0", "1")
    compare([str(made)])
    assert "after epoch 2.0" in caplog.text
    with pytest.raises(UserError, match=r"train\.early_stopping\.patience.*splits\.validation"):
        fine_tune(tmp_path, *settings, "train.early_stopping.patience=1")


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    predict.main([*arguments, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_texts_are_classified(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences, labels = samples.texts(8, seed=5)
    found = predicted(capsys, str(tuned), *sentences)
    assert [int(one["predicted"]) for one in found] == labels
    assert all(sum(one["probabilities"].values()) == pytest.approx(1.0) for one in found)
    predict.main([str(tuned), sentences[0]])
    assert capsys.readouterr().out.startswith(f"{labels[0]} ")


def test_a_model_is_used_in_the_precision_that_it_was_judged_in(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    made = fine_tune(tmp_path, f"encoder.run={run}", "train.precision=bfloat16", "train.epochs=1")
    capsys.readouterr()
    predict.main(words := [str(made), "the storm is near", "--json"])
    rounded = capsys.readouterr()
    assert rounded.err == ""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    caplog.clear()
    predict.main(words)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "bfloat16" in warning.getMessage()
    exact, other = (json.loads(out)["probabilities"] for out in (capsys.readouterr().out, rounded.out))
    assert exact == pytest.approx(other, abs=0.02)
    assert exact != other


def test_a_table_is_classified_as_its_texts_are(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, output = samples.write_csv(tmp_path / "in.csv", 30, seed=5), tmp_path / "out.csv"
    predict.main([str(tuned), "--file", str(table), "--output", str(output)])
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "text", "target", "predicted", "probability_0", "probability_1"]
    assert sum(row["predicted"] == row["target"] for row in rows) >= 28
    capsys.readouterr()
    alone = predicted(capsys, str(tuned), *(row["text"] for row in rows))
    assert [one["predicted"] for one in alone] == [row["predicted"] for row in rows]
    for one, row in zip(alone, rows, strict=True):
        assert one["probabilities"]["1"] == pytest.approx(float(row["probability_1"]), abs=1e-5)


def test_a_table_that_has_our_columns_keeps_them_beside_ours(tuned: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.csv" for name in ("first", "second", "third"))
    first.write_text("text,predicted,probability_1,target\none two,before,0.5,1\n")
    predict.main([str(tuned), "--file", str(first), "--output", str(second)])
    predict.main([str(tuned), "--file", str(second), "--output", str(third)])
    with third.open(newline="") as file:
        names, row = csv.reader(file)
    assert names[:7] == [
        "text",
        "predicted",
        "probability_1",
        "target",
        "predicted.1",
        "probability_0",
        "probability_1.1",
    ]
    assert len(names) == len(set(names)) == 10
    assert row[1:3] == ["before", "0.5"]
    assert row[4:7] == row[7:]


def test_a_submission_needs_a_column_that_tells_its_rows(tuned: Path, tmp_path: Path) -> None:
    table, output = samples.write_csv(tmp_path / "in.csv", 30, seed=5), tmp_path / "out.csv"
    with pytest.raises(UserError, match="--submission target: that is the column of the classes"):
        predict.main([str(tuned), "--file", str(table), "--output", str(output), "--submission", "target"])
    assert not output.exists()
    for option in ("--submission", "--encoding"):
        with pytest.raises(UserError, match=f"{option} needs a table: name it with --file, and --output"):
            predict.main([str(tuned), "a text", option, "id"])


def test_a_table_is_decoded_by_itself_and_not_as_the_training_data_was(run: Path, tmp_path: Path) -> None:
    samples.write_csv(tmp_path / "train.csv", 60)
    content = (tmp_path / "train.csv").read_text() + "60,caf\u00e9 on fire,1\n"
    (tmp_path / "train.csv").write_text(content, encoding="latin-1")
    made = fine_tune(tmp_path, f"encoder.run={run}", "data.encoding=latin-1", "train.epochs=1")
    table, output = tmp_path / "in.csv", tmp_path / "out.csv"
    for encoding, options in (("utf-8", []), ("latin-1", ["--encoding", "latin-1"]), ("utf-16", [])):
        table.write_text("id,text\n1,A calm caf\u00e9\n", encoding=encoding)
        predict.main([str(made), "--file", str(table), "--output", str(output), *options])
        assert output.read_text(encoding="utf-8").splitlines()[1].startswith("1,A calm caf\u00e9,")
        output.unlink()
    table.write_text("id,text\n1,A calm caf\u00e9\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"in\.csv, line 2, byte 20: invalid UTF-8: .*--encoding"):
        predict.main([str(made), "--file", str(table), "--output", str(output)])
    assert not output.exists()


def test_a_submission_holds_the_id_and_the_class(tuned: Path, tmp_path: Path) -> None:
    table, output = samples.write_csv(tmp_path / "in.csv", 10, seed=5), tmp_path / "out.csv"
    predict.main([str(tuned), "--file", str(table), "--output", str(output), "--submission", "id"])
    lines = output.read_text().splitlines()
    assert lines[0] == "id,target"
    assert [line.split(",")[0] for line in lines[1:]] == [str(number) for number in range(10)]
    assert {line.split(",")[1] for line in lines[1:]} == {"0", "1"}


def test_rows_without_a_text_get_no_class_and_are_counted(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sentence, *_), (label, *_) = samples.texts(1, seed=5)
    (tmp_path / "in.csv").write_text(f"text,id\n{sentence},1\n,2\n")
    predict.main([str(tuned), "--file", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv")])
    assert "1 empty text" in capsys.readouterr().err
    assert [line.split(",")[2] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]] == [str(label), ""]


def test_texts_that_the_encoder_reads_alike_are_on_one_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = samples.make_run(tmp_path, normalisation="nfc")
    rows = [(f"Café {number} is {'calm' if number % 2 else 'grim'}.", number % 2) for number in range(60)]
    decomposed = [(unicodedata.normalize("NFD", text), label) for text, label in rows]
    for name, written in (("train", [*rows, *decomposed]), ("test", decomposed[:20])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "target"), *written])
    caplog.set_level("INFO")
    made = fine_tune(tmp_path, f"encoder.run={run}", f"data.test={tmp_path / 'test.csv'}", "train.epochs=0.1")
    data = results.read(made).data
    assert (data.train + data.validation, data.test) == (40, 20)
    line = "dropped: 60 duplicated texts, 20 training texts that are also in the test data"
    assert line in caplog.messages[0].splitlines()


@pytest.mark.parametrize("recorded", [True, False])
def test_an_empty_text_of_a_submission_gets_the_most_frequent_class(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], recorded: bool
) -> None:
    sentences, labels = samples.texts(40, seed=5)
    rare = str(1 - max(set(samples.texts(90)[1]), key=samples.texts(90)[1].count))  # not that of training
    rows = [sentence for sentence, label in zip(sentences, labels, strict=True) if str(label) == rare]
    (tmp_path / "in.csv").write_text("text,id\n" + "".join(f"{row},{n}\n" for n, row in enumerate([*rows, "", " "])))
    model = shutil.copytree(tuned, tmp_path / "run")
    if not recorded:  # as an earlier version saved it
        description = json.loads((model / "model" / "model.json").read_text())
        assert description.pop("most_frequent") != rare
        (model / "model" / "model.json").write_text(json.dumps(description))
        (model / "model" / "manifest.json").unlink()
        seal(model / "model", tmp_path / "sealed", 0)
        (tmp_path / "sealed").rename(model / "model")
    output = tmp_path / "out.csv"
    predict.main([str(model), "--file", str(tmp_path / "in.csv"), "--output", str(output), "--submission", "id"])
    *_, before, last = [line.split(",")[1] for line in output.read_text().splitlines()]
    assert before == last == (str(1 - int(rare)) if recorded else rare)
    assert f"2 empty texts got {last}, the " in capsys.readouterr().err


def test_cleaning_is_stored_with_the_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = fine_tune(
        tmp_path, f"encoder.run={run}", "data.cleaning.lower_case=true", "data.cleaning.urls=remove", "train.epochs=1"
    )
    plain, shouted = predicted(
        capsys, str(made), "the river is on fire", "The RIVER is  on fire http://example.org/a?b"
    )
    assert plain["probabilities"] == shouted["probabilities"]


def test_the_linear_head_trains_through_its_own_entry_point(run_with_cls: Path, tmp_path: Path) -> None:
    made = fine_tune(
        tmp_path,
        f"encoder.run={run_with_cls}",
        "head.pooling=cls",
        "trainable.layer_decay=0.9",
        "trainable.head_factor=2",
        main=linear_head.main,
    )
    found = results.read(made)
    assert found.head == "linear"
    accuracy = found.test.get("accuracy")
    assert accuracy is not None
    assert accuracy.mean > 0.8


@pytest.mark.parametrize("trainable", ["layers", "low_rank"])
def test_a_published_encoder_is_tuned_saved_and_used(
    trainable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_published.save(tmp_path / "bert", "bert")
    made = fine_tune(
        tmp_path, f"encoder.hub={folder}", "encoder.longest=16", f"trainable.kind={trainable}", "train.epochs=2"
    )
    shutil.rmtree(folder)  # the model stands alone
    found = results.read(made)
    assert (found.parameters.trained < found.parameters.all) == (trainable == "low_rank")
    sentences, _ = samples.texts(4, seed=5)
    together = predicted(capsys, str(made), *sentences)
    alone = [predicted(capsys, str(made), sentence)[0] for sentence in sentences]
    assert len({one["probabilities"]["1"] for one in together}) > 1
    for one, other in zip(together, alone, strict=True):
        assert one["probabilities"]["1"] == pytest.approx(other["probabilities"]["1"], abs=1e-5)
    model = saved_model.load(made, torch.device("cpu"))
    assert weights.sha256(weights.host_state_dict(model.classifier)) == found.trials[0].weights_sha256


MISTAKES = {
    "no run": ((), "runs"),
    "unknown metric": (("train.early_stopping.metric=acc",), "train.early_stopping.metric.*acc"),
    "adapters on ours": (("trainable.kind=low_rank",), "encoder.hub.*trainable.kind"),
    "too many layers": (("trainable.layers=9",), "trainable.layers=9.*2 layers"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_makes_no_run(name: str, run: Path, tmp_path: Path) -> None:
    overrides, message = MISTAKES[name]
    chosen = (
        () if any(word.startswith("encoder.") for word in overrides) or name == "no run" else (f"encoder.run={run}",)
    )
    with pytest.raises(UserError, match=message) as caught:
        fine_tune(tmp_path, *chosen, *overrides)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("runs/*")) == []


def test_replacement_by_an_encoder_that_predicts_no_words_makes_no_run(tmp_path: Path) -> None:
    headless = tiny_published.save(tmp_path / "headless", "bert", "BertModel")
    with pytest.raises(UserError, match=r"headless.*BertForMaskedLM"):
        fine_tune(tmp_path, f"encoder.hub={headless}", "augment.replace=0.2")
    assert list(tmp_path.glob("runs/*")) == []


def test_predicting_with_what_is_no_classifier_is_a_mistake(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finetune.cnn_head"):
        predict.main([str(run), "text"])
    with pytest.raises(UserError, match="none"):
        predict.main([str(tmp_path / "none"), "text"])


def test_a_damaged_or_foreign_model_is_refused(tuned: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tuned, copy)
    weights = copy / "model" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"weights.safetensors"):
        predict.main([str(copy), "text"])


def test_a_model_that_does_not_tell_its_precision_is_used_in_float32(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / "older"
    shutil.copytree(tuned / "model", older / "partial")
    (older / "partial" / "manifest.json").unlink()
    description = older / "partial" / "model.json"
    known = json.loads(description.read_text())
    assert known.pop("precision") == "float32"
    description.write_text(json.dumps(known))
    seal(older / "partial", older / "model", 0)
    said = []
    for run in (tuned, older):
        predict.main([str(run), "the storm is near", "--json"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_an_existing_output_is_not_overwritten(tuned: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("mine")
    table = samples.write_csv(tmp_path / "in.csv", 5)
    with pytest.raises(UserError, match=r"out.csv"):
        predict.main([str(tuned), "--file", str(table), "--output", str(output)])
    assert output.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv", "out.csv"}


def test_a_full_disk_leaves_no_predictions_and_the_second_try_works(tuned: Path, tmp_path: Path) -> None:
    table, output = samples.write_csv(tmp_path / "in.csv", 60), tmp_path / "out.csv"
    words = [str(tuned), "--file", str(table), "--output", str(output)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a disk with little room
    try:
        with pytest.raises(OSError, match=r"out\.csv"):
            predict.main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv"}
    predict.main(words)
    with output.open(newline="") as file:
        assert len(list(csv.reader(file))) == 61


def test_a_saved_model_stands_for_its_run(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for named in (tuned, tuned / "model"):
        predict.main([str(named), "the storm is near"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    with pytest.raises(UserError, match="a fine-tuned model already"):
        fine_tune(tmp_path, f"encoder.run={tuned / 'model'}")


def test_lines_of_standard_input_are_classified_one_by_one(tuned: Path, tmp_path: Path) -> None:
    done = run_module(tmp_path, "finetune.predict", tuned, text="\ufeffthe river is on fire 5\n\n \nhow lovely\n")
    assert done.returncode == 0
    assert [line.rpartition("    ")[2] for line in done.stdout.splitlines()] == ["the river is on fire 5", "how lovely"]
    assert done.stderr == ""


def test_a_full_disk_costs_records_and_no_trial(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(Observer):
        """Leaves no room for metrics from the first step on, as another program may."""

        def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))

        def ended(self, progress: TrainingProgress) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = Labelled(train=str(samples.write_csv(tmp_path / "train.csv", 60)), label="target")
    config = FinetuneConfig(runs=str(tmp_path), encoder=EncoderChoice(run=str(run)), data=data, tracking=())
    try:
        made = finetune(config, [Full()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "RECORD OF STEP" in caplog.text
    assert results.read(made.path) == made.results


def test_a_mistake_ends_the_command_with_one_line_and_2(tmp_path: Path) -> None:
    done = call(tmp_path, "finetune.cnn_head")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "runs" in line
    assert "mlm.pretrain" in line


def test_ctrl_c_ends_training_with_130_and_leaves_no_results(run: Path, tmp_path: Path) -> None:
    table = samples.write_csv(tmp_path / "train.csv", 90)
    words: Sequence[str] = (f"encoder.run={run}", "data.kind=labelled", f"data.train={table}", "data.label=target")
    interrupted_in_training(tmp_path, "runs/*/metrics.jsonl", "finetune.cnn_head", *words, "train.epochs=10000")
    assert list(tmp_path.glob("runs/*/results.json")) == []
