import sys
from pathlib import Path

import pytest

from configs import UserError
from finetune import export as command
from finetune.interop.export import export
from tests.finetune.interop import samples


def test_a_mistake_is_told_before_anything_is_written(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_run, out = tmp_path / "run", tmp_path / "out"
    samples.save(model_run, samples.encoder(tmp_path, "like_none"), {"kind": "linear"})
    (tmp_path / "there").mkdir()
    mistakes = [
        ([str(model_run), str(tmp_path / "there")], "there exists already"),
        ([str(run), str(out)], "finetune.cnn_head encoder.run="),
        ([str(tmp_path / "none"), str(out)], "no such run"),
        ([str(model_run), str(tmp_path / "none" / "out")], "does not exist"),
        ([str(model_run), str(out), "--format", "gguf"], "--help"),
        ([str(model_run), str(out), "--format", "transformers"], "model.encoder.positions.kind=learned"),
    ]
    for arguments, said in mistakes:
        with pytest.raises(UserError, match=said):
            command.main(arguments)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"not installed: onnx, .*pip install .*\[onnx\]"):
        command.main([str(model_run), str(out), "--format", "onnx"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["like_none", "run", "there"]


def test_a_linear_head_leaves_in_the_formats_that_have_its_counterpart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_run = tmp_path / "run"
    samples.save(model_run, samples.encoder(tmp_path, "like_none"), {"kind": "linear"})
    caplog.set_level("INFO")
    assert set(export(model_run, tmp_path / "out").differences) == {"onnx"}
    assert "not exported as transformers: " in caplog.text
    assert "model.encoder.positions.kind=learned" in caplog.text
