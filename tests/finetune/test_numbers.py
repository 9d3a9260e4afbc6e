"""A number in place of a class: the similarity of a pair, or a grade."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from configs import UserError, read, recipes
from finetune import predict, saved_model
from finetune.config import EarlyStopping, FinetuneConfig
from finetune.data.examples import Dataset, DataSplit, Examples
from finetune.data.labelled import Labelled
from finetune.data.splits import Folds, Fractions
from finetune.demo.trained import open_classifier
from finetune.evaluation import baselines, results
from finetune.evaluation.results import MeanStd
from finetune.experiment import FinetuneRun, finetune
from finetune.heads import NumberHead
from finetune.interop.export import export
from finetune.table import classify_table
from finetune.training.classification import Classification, ExampleBatch, measure
from finetune.trial import BestWeights, Trial, make_task
from mlm.training.budget import TrainingProgress
from tests.finetune import samples
from tests.mlm.samples import CPU
from tokenizer.cleaning import TextConfig

SETTINGS = ("head={kind: linear}", "data={kind: labelled, label: grade, target: number}", "tracking=[]")
TRAIN = (
    "train={epochs: 6, batch_examples: 8, precision: float32, early_stopping: {metric: pearson}}",
    "optim={kind: adamw, lr: 3e-3}",
    "splits={validation: 0.2, test: 0.2}",
)


def write_grades(path: Path, number: int = 120) -> Path:
    """Write texts whose grade is 2.5 times the number of their words of harm, minus 1."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "grade"))
        for row in range(number):
            harm = int(rng.integers(0, 4))
            words = [*["fire"] * harm, *["garden"] * (4 - harm)]
            writer.writerow((f"{' '.join(rng.permutation(words))} {row}", f"{2.5 * harm - 1:g}"))
    return path


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneRun:
    folder = tmp_path_factory.mktemp("numbers")
    data = f"data.train={write_grades(folder / 'grades.csv')}"
    words = [*SETTINGS, *TRAIN, data, f"encoder.run={run}", f"runs={folder / 'runs'}", "name=grades"]
    return finetune(read(FinetuneConfig, None, words))


def test_a_number_is_learned_and_measured_by_correlation_and_squared_error(made: FinetuneRun) -> None:
    found = results.read(made.path)
    assert found == made.results
    assert found.classes == ("grade",)
    test = found.trials[0].test
    assert test.measured().keys() == {"pearson", "spearman", "loss"}
    with (made.path / "mistakes.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.data.test
    predicted, true = (np.array([float(row[column]) for row in rows]) for column in ("predicted", "true"))
    errors = [float(row["error"]) for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert errors == pytest.approx(np.abs(predicted - true), abs=2e-4)
    head = saved_model.load(made.path, torch.device("cpu")).classifier.head
    assert isinstance(head, NumberHead)
    deviation = head.deviation.item()
    assert deviation == pytest.approx(2.5 * 1.25**0.5, abs=0.3)  # of 0, 1, 2 and 3, which are equally frequent
    assert test.pearson == pytest.approx(np.corrcoef(predicted, true)[0, 1], abs=1e-3)
    assert test.spearman == pytest.approx(stats.spearmanr(predicted, true).statistic, abs=1e-3)
    assert test.loss == pytest.approx(np.mean((predicted - true) ** 2) / deviation**2, abs=1e-3)
    assert test.pearson is not None
    assert test.pearson > 0.8
    assert found.baselines.majority.pearson == MeanStd(mean=0.0, std=None)
    assert found.baselines.majority.loss is not None
    assert found.baselines.majority.loss.mean == pytest.approx(1, abs=0.3)
    assert found.baselines.tfidf.pearson is not None
    assert found.baselines.tfidf.pearson.mean > 0.8
    assert [line.split()[:2] for line in made.summary.splitlines()[:4]] == [
        ["test", "pearson"], ["this", "encoder"], ["TF-IDF", str(found.baselines.tfidf.pearson)], ["mean", "number"],
    ]  # fmt: skip
    assert (made.path / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert not (made.path / "confusion.png").exists()
    records = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert {"pearson", "spearman", "loss"} == set(records[0]) - {
        "trial",
        "fold",
        "seed",
        "control",
        "side",
        "step",
        "epoch",
    }


def test_a_saved_model_predicts_numbers_for_texts_and_tables(
    made: FinetuneRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["fire fire garden garden 7", "garden garden garden garden 7"]
    model = saved_model.load(made.path, torch.device("cpu"))
    expected = [found.probabilities[0] for found in model.classify([{"text": text} for text in texts], CPU)]
    assert expected[0] > expected[1]
    predict.main([str(made.path), *texts])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"grade {number:.4g}    {text}" for number, text in zip(expected, texts, strict=True)]
    predict.main([str(made.path), texts[0], "--json"])
    assert json.loads(capsys.readouterr().out) == {"text": texts[0], "predicted": pytest.approx(expected[0])}
    (tmp_path / "new.csv").write_text(f"id,text\n1,{texts[0]}\n2, \n3,{texts[1]}\n")
    predict.main([str(made.path), "--file", str(tmp_path / "new.csv"), "--output", str(tmp_path / "out.csv")])
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "text", "predicted"]
    assert [row[2] for row in rows[1:]] == [f"{expected[0]:.6g}", "", f"{expected[1]:.6g}"]


def test_the_loss_is_the_summed_squared_error_and_its_gradient(run: Path) -> None:
    examples = Examples((("one",), ("two two",)), np.array([0.25, -3.0]))
    config = read(FinetuneConfig, None, [*SETTINGS, *TRAIN, "data.train=x"])
    task = make_task(Trial(config, DataSplit(examples, examples, examples), 0, 1), samples.encoder(run), CPU)
    assert isinstance(task, Classification)
    (batch,) = task.micro_batches(0, 0.0)
    order = [0.25, -3.0] if batch.labels_B[0] == 0.25 else [-3.0, 0.25]
    assert batch.labels_B.tolist() == order
    scores_B1 = torch.tensor([[1.5], [0.5]], requires_grad=True)

    class Given(torch.nn.Module):
        def forward(self, ids_BL: torch.Tensor, real_BL: torch.Tensor, types_BL: torch.Tensor) -> torch.Tensor:
            return scores_B1

    losses = task.losses(Given(), batch)
    assert set(losses) == {"loss"}
    variance = (3.25 / 2) ** 2
    assert losses["loss"].item() == pytest.approx(((1.5 - order[0]) ** 2 + (0.5 - order[1]) ** 2) / variance)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    assert scores_B1.grad is not None
    assert scores_B1.grad.flatten().tolist() == pytest.approx(
        [2 * (1.5 - order[0]) / variance, 2 * (0.5 - order[1]) / variance]
    )
    idle: ExampleBatch = batch.without_targets()
    assert task.losses(Given(), idle)["loss"].item() == 0
    found = measure(np.array([1.0, 2.0, 4.0]), np.array([[1.0], [3.0], [4.0]]), 2.0)
    assert found["loss"] == pytest.approx(1 / 3 / 4)


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_numbers_whose_squares_are_no_float32_have_the_loss_of_their_deviations(run: Path, size: float) -> None:
    examples = Examples((("one",), ("two two",)), np.array([0.0, 2 * size]))
    config = read(FinetuneConfig, None, [*SETTINGS, *TRAIN, "data.train=x"])
    task = make_task(Trial(config, DataSplit(examples, examples, examples), 0, 1), samples.encoder(run), CPU)
    (batch,) = task.micro_batches(0, 0.0)
    scores_B1 = torch.full((2, 1), 3 * size, requires_grad=True)

    class Given(torch.nn.Module):
        def forward(self, ids_BL: torch.Tensor, real_BL: torch.Tensor, types_BL: torch.Tensor) -> torch.Tensor:
            return scores_B1

    assert task.losses(Given(), batch)["loss"].item() == pytest.approx(3**2 + 1**2)


def test_numbers_of_any_size_are_told_apart_in_any_precision() -> None:
    """In bfloat16 a number near 1,000 is a multiple of 4."""
    head = NumberHead(nn.Linear(4, 1))
    head.scale_to(np.array([990.0, 1010.0]))
    assert (head.mean.item(), head.deviation.item()) == (1000, 10)
    hidden_BLD = torch.randn(50, 1, 4, generator=torch.Generator().manual_seed(0))
    head.network.forward = lambda hidden, real, ids: nn.functional.linear(hidden[:, 0], torch.full((1, 4), 0.01))
    with torch.autocast("cpu", torch.bfloat16):
        found = head(hidden_BLD.bfloat16(), hidden_BLD, hidden_BLD)
    assert found.dtype == torch.float32
    assert len(found.unique()) > 45


def test_equal_numbers_are_one_however_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\none,3\none,3.0\ntwo,3e0\nthree,1\n")
    data = Labelled(train=str(tmp_path / "a.csv"), target="number").load(TextConfig())
    assert dict(zip(data.train.texts, data.train.labels, strict=True)) == {("one",): 3, ("two",): 3, ("three",): 1}


def test_validation_numbers_that_are_all_the_same_leave_no_correlation_to_choose_by(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,grade\n" + "".join(f"text {row},{row}\n" for row in range(9)))
    (tmp_path / "b.csv").write_text("text,grade\none,3\ntwo,3\n")
    files = (f"data.train={tmp_path / 'a.csv'}", f"data.validation={tmp_path / 'b.csv'}", f"runs={tmp_path / 'runs'}")
    words = [*SETTINGS, *TRAIN, *files, f"encoder.run={run}"]
    with pytest.raises(UserError, match=r"metric=pearson: the numbers of the validation part are all the same"):
        finetune(read(FinetuneConfig, None, words))
    kept = BestWeights(EarlyStopping(metric="pearson"))
    model = nn.Linear(1, 1)
    kept.evaluated(TrainingProgress(step=1), {"loss": 1.0}, model)  # constant predictions have no correlation
    assert kept.weights
    assert kept.step == 1
    kept.evaluated(TrainingProgress(step=2), {"loss": 1.0, "pearson": -0.5}, model)
    assert (kept.step, kept.goodness) == (2, -0.5)


def test_empty_rows_of_a_submission_get_the_mean_number(made: FinetuneRun, tmp_path: Path) -> None:
    model = saved_model.load(made.path, torch.device("cpu"))
    (tmp_path / "new.csv").write_text("id,text\n1,fire fire 7\n2, \n")
    *_, last = classify_table(model, tmp_path / "new.csv", tmp_path / "out.csv", "id", CPU, "utf-8")
    assert model.most_frequent is not None
    assert (tmp_path / "out.csv").read_text().splitlines()[2] == f"2,{model.most_frequent}"
    assert f"1 empty texts got {model.most_frequent}, the mean of the training numbers" in last.remarks


def test_ridge_regression_compares_the_texts_of_pairs() -> None:
    """A pair is similar by the words that its texts share; the words themselves tell nothing."""
    rng = np.random.default_rng(1)
    words = [f"word{letter}" for letter in "abcdefghijklmnop"]

    def pairs(number: int) -> Examples:
        texts, labels = [], []
        for _ in range(number):
            shared = int(rng.integers(0, 5))
            chosen = rng.permutation(words)[: 8 - shared]
            texts.append((" ".join(chosen[:4]), " ".join([*chosen[:shared], *chosen[4:]])))
            labels.append(float(shared))
        return Examples(tuple(texts), np.array(labels))

    split = DataSplit(pairs(300), pairs(30), pairs(60))
    found = baselines.measured(split, baselines.predict_tfidf(split, 1))
    assert found["pearson"] is not None
    assert found["pearson"] > 0.9


def test_numbers_are_split_without_classes(tmp_path: Path) -> None:
    data = Labelled(train=str(write_grades(tmp_path / "a.csv", 50)), label="grade", target="number").load(TextConfig())
    assert data.is_of_numbers
    assert set(data.train.labels) == {-1.0, 1.5, 4.0, 6.5}
    (split,) = Fractions(validation=0.2, test=0.2).splits(data)
    assert (len(split.train), len(split.validation), len(split.test)) == (30, 10, 10)
    folds = Folds(folds=5, validation=0).splits(data)
    assert sorted(text for fold in folds for text in fold.test.texts) == sorted(data.train.texts)


@pytest.mark.parametrize(
    ("texts", "splits", "sizes"),
    [
        (4, Fractions(), (2, 1, 1)),
        (9, Fractions(test=0.2, validation=0.05), (6, 1, 2)),
        (12, Fractions(train=0.97), (9, 1, 1)),
    ],
)
def test_a_share_that_rounds_to_none_or_all_takes_one_or_leaves_one(
    texts: int, splits: Fractions, sizes: tuple[int, int, int]
) -> None:
    train = Examples(tuple((f"text {number}",) for number in range(texts)), np.arange(texts, dtype=np.float64))
    (split,) = splits.splits(Dataset(("grade",), train, None, None, {}))
    assert (len(split.train), len(split.validation), len(split.test)) == sizes


def test_a_single_number_cannot_be_split() -> None:
    alone = Examples((("text",),), np.array([1.0]))
    with pytest.raises(UserError, match=r"1 texts, and a part of 10 % takes 2: add some"):
        Fractions().splits(Dataset(("grade",), alone, None, None, {}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["one,1", "two,many"], r"no number in row 2 \(many\): mend or remove these rows, or set data\.target=class"),
        (["one,1", "two,"], r"no number in row 2 \(''\)"),
        (["one,1", "two,inf"], r"no number in row 2 \(inf\)"),
        (["one,nan", "two,2"], r"no number in row 1"),
    ],
)
def test_a_label_that_is_no_number_is_told(tmp_path: Path, rows: list[str], message: str) -> None:
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]))
    with pytest.raises(UserError, match=message):
        Labelled(train=str(tmp_path / "a.csv"), target="number").load(TextConfig())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train.early_stopping.metric=accuracy"],
            "accuracy is no measure of a number: choose one of pearson, spearman",
        ),
        (["train.class_weights=balanced"], r"train\.class_weights and train\.label_smoothing are of classes"),
        (["train.label_smoothing=0.1"], r"train\.class_weights and train\.label_smoothing are of classes"),
        (["data.classes=[a, b]"], "data.target=number has no classes"),
        (["data.target=class"], "pearson is no measure of a class: choose one of accuracy"),
    ],
)
def test_settings_of_classes_are_refused_with_numbers(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(FinetuneConfig, None, [*SETTINGS, *TRAIN, *words])


def test_what_shows_classes_refuses_a_model_of_numbers(made: FinetuneRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="predicts a number, and classifiers alone are exported"):
        export(made.path, tmp_path / "out")
    with pytest.raises(UserError, match="predicts a number, and the page shows classes"):
        open_classifier(made.path, CPU)


@pytest.mark.skipif("MLM_TEST_DATA" not in os.environ, reason="MLM_TEST_DATA names no folder with real data")
def test_published_tasks_are_read_by_the_recipes_of_glue() -> None:
    data = Path(os.environ["MLM_TEST_DATA"])
    pairs = data / "pairs"

    def loaded(recipe: str, train: str, test: str, *words: str, folder: Path = pairs) -> DataSplit:
        files = [f"data.train={folder / train}", f"data.test={folder / test}"]
        config = read(FinetuneConfig, recipes.find(f"glue/{recipe}", "finetune"), [*files, *words])
        (split,) = config.splits.splits(config.data.load(TextConfig()))
        return split

    rte, wnli = loaded("rte", "rte_train.tsv.gz", "rte_dev.tsv"), loaded("wnli", "wnli_train.tsv", "wnli_dev.tsv")
    assert (len(rte.test), len(wnli.test)) == (277, 71)
    raw = "data.header=[source, label, mark, sentence]"
    cola = loaded("cola", "in_domain_train.tsv", "in_domain_dev.tsv", raw, folder=data / "cola")
    reviews = loaded("sst2", "sst2_train.csv.gz", "sst2_test.csv.gz", "data.text=text", folder=data / "kim2014")
    assert (len(cola.test), len(reviews.test)) == (527, 1821)
    similar = loaded("stsb", "korsts_train.tsv.gz", "korsts_test.tsv", "data.label=score")
    assert len(similar.test) > 1_370
    assert (similar.train.labels.min(), similar.train.labels.max()) == (0, 5)
    found = baselines.measured(similar, baselines.predict_tfidf(similar, 1))
    assert found["pearson"] is not None
    assert found["pearson"] > 0.4
