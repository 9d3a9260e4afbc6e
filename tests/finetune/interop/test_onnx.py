import json
import re
from pathlib import Path
from typing import Any

import pytest

from finetune import export as command
from finetune.interop.export import export
from finetune.saved_model import SavedModel
from tests import processes
from tests.finetune import tiny_published
from tests.finetune.interop import samples
from tests.finetune.samples import CPU

pytest.importorskip("onnxscript", reason="ONNX needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs the extra onnx")

CLEANING = {
    "html_entities": True,
    "urls": "replace",
    "mentions": "remove",
    "hashtags": "split",
    "longest_repeat": 2,
    "lower_case": True,
    "prefix": ("keyword",),
}
ROWS = [
    {"text": "a"},
    {"text": "Fire &amp; flood, soooo near http://t.co/x! @bob  #ForestFire2020", "keyword": "forest%20fire"},
    {"text": "The [SEP] river " + "is on fire " * 30, "keyword": ""},
]


def answers_of_card(folder: Path, rows: list[dict[str, str]]) -> list[dict[str, float]]:
    """Run the code of a README.md for `rows` in a process without torch and without this project; return its lines."""
    (code,) = [
        code
        for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        if "onnxruntime" in code
    ]
    code, places = re.subn(r"^rows = .*$", lambda _: f"rows = {rows!r}", code, flags=re.MULTILINE)
    assert places == 1
    process = processes.run_alone(folder, code)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def expected(model: SavedModel, rows: list[dict[str, str]]) -> list[Any]:
    found = model.classify(rows, CPU)
    return [pytest.approx(dict(zip(model.class_names, one.probabilities, strict=True)), abs=1e-5) for one in found]


def test_a_cnn_head_leaves_with_classes_and_cleaning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = {"kind": "cnn", "widths": (2, 5), "filters": 6}
    model = samples.save(tmp_path / "run", samples.encoder(tmp_path, "like_none"), head, cleaning=CLEANING)
    command.main([str(tmp_path / "run"), str(tmp_path / "out")])
    assert re.search(r"onnx: largest difference of a probability \d\.\de-0[6-9]", capsys.readouterr().out)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("README.md", "onnx", "tokenizer.json", "tokenizer_config.json"),
    ]
    assert answers_of_card(tmp_path / "out", ROWS) == expected(model, ROWS)


def test_a_pair_leaves_with_its_token_types_in_both_formats(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="classifiers in transformers need the extra hub")
    encoder, head = samples.encoder(tmp_path, "bert"), {"kind": "linear", "pooling": "cls"}
    model = samples.save(tmp_path / "run", encoder, head, pair="other")
    assert set(export(tmp_path / "run", tmp_path / "out").differences) == {"transformers", "onnx"}
    rows = [{"text": first, "other": second} for first, second in tiny_published.PAIRS]
    classify = transformers.pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    pairs = [{"text": first, "text_pair": second} for first, second in tiny_published.PAIRS]
    found = [{one["label"]: one["score"] for one in classify(pair)} for pair in pairs]
    assert answers_of_card(tmp_path / "out", rows) == expected(model, rows)
    assert found == expected(model, rows)
