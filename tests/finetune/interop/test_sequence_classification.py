import re
from pathlib import Path

import pytest
import torch

from configs import UserError
from finetune.interop.export import export
from mlm.interop import conversion, published
from tests.finetune import tiny_published
from tests.finetune.interop import samples
from tests.finetune.samples import CPU

transformers = pytest.importorskip("transformers", reason="classifiers in transformers need the extra hub")

EXACT = [
    ("bert", "cls"),
    ("ernie", "cls"),
    ("albert", "cls"),
    ("roberta", "cls"),
    ("xlm_roberta", "cls"),
    ("electra", "cls"),
    ("distilbert", "cls"),
    ("deberta", "cls"),
    ("modernbert", "cls"),
    ("modernbert", "mean"),
    ("like_bert", "cls"),
    ("like_modernbert", "cls"),
    ("like_modernbert", "mean"),
]


@pytest.mark.parametrize(("kind", "pooling"), EXACT)
def test_a_linear_head_leaves_exactly(kind: str, pooling: str, tmp_path: Path) -> None:
    samples.save(tmp_path / "run", samples.encoder(tmp_path, kind), {"kind": "linear", "pooling": pooling})
    exported = export(tmp_path / "run", tmp_path / "out", ["transformers"])
    assert exported.differences["transformers"] < 1e-6
    assert exported.texts > 5
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("kind", ["bert", "like_modernbert"])
def test_a_pipeline_gives_the_classes_and_probabilities_of_the_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pooling = "mean" if kind == "like_modernbert" else "cls"
    cleaning = {"urls": "replace", "lower_case": True}
    encoder = samples.encoder(tmp_path, kind)
    model = samples.save(tmp_path / "run", encoder, {"kind": "linear", "pooling": pooling}, cleaning=cleaning)
    export(tmp_path / "run", tmp_path / "out", ["transformers"])
    reader = model.config.data.reader
    texts = [*tiny_published.TEXTS, "A Storm at http://t.co/x", " ".join(tiny_published.TEXTS * 9)]
    classify = transformers.pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    rows = [{"text": text} for text in texts]
    for row, found in zip(rows, model.classify(rows, CPU), strict=True):
        (text,) = reader.texts(row)
        scores = {one["label"]: one["score"] for one in classify([text], truncation=True)[0]}
        assert scores == pytest.approx(dict(zip(model.class_names, found.probabilities, strict=True)), abs=1e-5)
    monkeypatch.chdir(tmp_path / "out")
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.count("class 2") == 2
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.problem_type == "single_label_classification"
    assert any("URL" in sentence for sentence in config.text_preparation)
    assert any("lower case" in line for line in (tmp_path / "out" / "README.md").read_text().splitlines())


@pytest.mark.parametrize("kind", ["like_bert", "like_modernbert"])
def test_a_classifier_that_left_comes_in_as_an_encoder_without_a_head(kind: str, tmp_path: Path) -> None:
    samples.save(tmp_path / "run", samples.encoder(tmp_path, kind), {"kind": "linear", "pooling": "cls"})
    export(tmp_path / "run", tmp_path / "out", ["transformers"])
    found = published.read(str(tmp_path / "out"))
    assert not found.has_head
    assert any("left out" in remark for remark in found.remarks)
    assert conversion.check(conversion.convert(found, found.row_length))["hidden states"].largest < 1e-5


REFUSED = [
    ("bert", {"kind": "cnn"}, 2, "finetune.linear_head"),
    ("bert", {"kind": "linear", "pooling": "mean"}, 2, "head.pooling=cls"),
    ("bert", {"kind": "linear", "pooling": "max"}, 2, "head.pooling=cls"),
    ("modernbert", {"kind": "linear", "pooling": "max"}, 2, "head.pooling=mean"),
    ("xlnet", {"kind": "linear", "pooling": "mean"}, 2, "roberta"),
    ("like_none", {"kind": "linear", "pooling": "mean"}, 2, "model.encoder.positions.kind=learned"),
    ("bert", {"kind": "linear", "pooling": "cls"}, 9, "width 18"),
    ("modernbert", {"kind": "linear", "pooling": "cls"}, 8, "width 18"),
]


@pytest.mark.parametrize(("kind", "head", "classes", "remedy"), REFUSED)
def test_what_has_no_counterpart_is_refused_with_the_remedy(
    kind: str, head: dict[str, str], classes: int, remedy: str, tmp_path: Path
) -> None:
    samples.save(tmp_path / "run", samples.encoder(tmp_path, kind), head, classes)
    with pytest.raises(UserError, match=r"--format onnx") as refused:
        export(tmp_path / "run", tmp_path / "out", ["transformers"])
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("*out*"))


def test_a_difference_that_is_too_large_leaves_nothing_behind(tmp_path: Path) -> None:
    encoder, head = samples.encoder(tmp_path, "bert"), {"kind": "linear", "pooling": "cls"}
    model = samples.save(tmp_path / "run", encoder, head, size=1e5)  # so that tanh is no longer linear
    with torch.no_grad():
        model.classifier.head.get_parameter("output.weight")[1] *= 1 + 1e-6
    with pytest.raises(UserError, match="run and the transformers model differ"):
        export(tmp_path / "run", tmp_path / "out", ["transformers"])
    assert not list(tmp_path.glob("*out*"))
