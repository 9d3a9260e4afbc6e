import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import UserError, dump
from mlm import export as command
from mlm.checkpoint import checkpoint
from mlm.config import DataConfig, PretrainConfig
from mlm.interop import onnx
from mlm.interop.export import architecture_of
from mlm.model.attention import SegmentMask
from mlm.model.encoder import EncoderConfig, LocalAttention, SinusoidalPositions
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.model.initialize import initialize
from mlm.training.budget import TrainingProgress
from mlm.training.optim import AdamW
from tests import processes
from tokenizer import vocabulary
from tokenizer.vocabulary import VocabularyConfig

pytest.importorskip("onnxscript", reason="ONNX needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs the extra onnx")

ROW_LENGTH = 200
SIZES: Mapping[str, Any] = {"width": 16, "heads": 2, "feedforward_width": 24}
VANILLA = EncoderConfig(**SIZES, layers=1, norm="post", positions=SinusoidalPositions(), embedding_norm=False)
MODERN = EncoderConfig(**SIZES, layers=2, gated=True, biases=False, local_attention=LocalAttention(window=9))


def make_run(folder: Path, encoder: EncoderConfig) -> Path:
    """Write a run of random weights, large enough that scores differ."""
    config = ModelConfig(encoder=encoder)
    words = ["the results of the trial were published a year later", "the ferry had left before anyone noticed the dog"]
    tokenizer = vocabulary.learn(iter(words * 9), VocabularyConfig(size=280))
    model = MaskedLanguageModel(config, tokenizer.get_vocab_size(), ROW_LENGTH)
    initialize(model, encoder, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    run = folder / "run"
    run.mkdir()
    (run / checkpoint.TOKENIZER).write_bytes(vocabulary.serialize(tokenizer))
    recipe = PretrainConfig(data=DataConfig(row_length=ROW_LENGTH), model=config)
    (run / checkpoint.CONFIG).write_text(dump(recipe))
    taken = checkpoint.snapshot(model, AdamW().build(model), TrainingProgress(1))
    checkpoint.save(checkpoint.step_folder(run, 1), taken, recipe, run / checkpoint.TOKENIZER)
    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that has no counterpart in transformers, and its export."""
    folder = tmp_path_factory.mktemp("onnx")
    run = make_run(folder, VANILLA)
    command.main([str(run), str(folder / "out"), "--format", "onnx"])
    return run, folder / "out"


def test_a_recipe_that_transformers_lacks_leaves_as_onnx_for_all_lengths(exported: tuple[Path, Path]) -> None:
    run, out = exported
    model, _, config = checkpoint.load_model(checkpoint.newest(run), torch.device("cpu"))
    with pytest.raises(UserError, match="--format onnx"):
        architecture_of(config.model)
    session = onnxruntime.InferenceSession(out / onnx.FILE, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [one.name for one in session.get_outputs()] == ["logits", "last_hidden_state"]
    for rows, length in ((1, 1), (1, 199), (2, 3), (3, 3), (5, 150)):
        ids_BL = torch.randint(5, 280, (rows, length), generator=torch.Generator().manual_seed(length))
        real_BL = torch.arange(length) < torch.arange(length, length + rows)[:, None] // 2 + 1
        positions_BL = torch.arange(length).expand(rows, length)
        with torch.no_grad():
            segment_mask = SegmentMask.of(real_BL.int(), positions_BL, torch.float32)
            expected_BLV = model(ids_BL, segment_mask, positions_BL).unflatten(0, (rows, length))
            expected_BLD = model.encoder(ids_BL, segment_mask)
        given = {"input_ids": ids_BL.numpy(), "attention_mask": real_BL.long().numpy()}
        for found, expected in zip(session.run(None, given), (expected_BLV, expected_BLD), strict=True):
            torch.testing.assert_close(torch.from_numpy(found)[real_BL], expected[real_BL], atol=2e-5, rtol=0)


def test_its_model_card_runs_without_torch_and_without_this_package(exported: tuple[Path, Path]) -> None:
    _, out = exported
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    process = processes.run_alone(out, code)
    assert process.returncode == 0, process.stderr
    assert len(ast.literal_eval(process.stdout)) == 5


def test_onnx_stands_beside_what_transformers_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="exports need the extra hub")
    command.main([str(make_run(tmp_path, MODERN)), str(tmp_path / "out"), "--onnx"])
    assert {"config.json", "model.safetensors", "onnx"} <= {path.name for path in (tmp_path / "out").iterdir()}
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if "onnxruntime" in line]) == 2
