import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch

from configs import UserError
from finetune.encoders.published import load_published
from tests.finetune.tiny_published import equal, load, save, weights


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save(tmp_path, "bert")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def to_bin(folder: Path) -> Path:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_a_bin_file_of_tensors_is_read_and_safetensors_go_first(bert: Path) -> None:
    expected = weights(load(bert))
    kept = (bert / "model.safetensors").read_bytes()
    path = to_bin(bert)
    assert equal(weights(load(bert)), expected)
    path.write_bytes(b"damaged")
    (bert / "model.safetensors").write_bytes(kept)
    assert equal(weights(load(bert)), expected)


class Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(bert: Path, zipped: bool) -> None:
    path, mark = to_bin(bert), bert / "attacked"
    state = {**torch.load(path), "more": Attack(mark)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"unpickling.*safetensors") as caught:
        load(bert)
    assert "\n" not in str(caught.value)
    assert not mark.exists()
    path.write_bytes(pickle.dumps(state))
    with pytest.raises(UserError):
        load(bert)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # it is an attack


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_weight(folder: Path, name: str) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file({key: state[key] for key in state if name not in key}, folder / "model.safetensors")


def drop_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


REMOTE = {"auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "damaged config": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "list as config": (lambda folder: (folder / "config.json").write_text("[1]"), "config.json"),
    "remote code": (lambda folder: change(folder, model_type="new", **REMOTE), "config.json.*new.*code"),
    "unknown model": (lambda folder: change(folder, model_type="new"), "config.json.*model_type 'new'"),
    "decoder": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'),
        "t5",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "weights in"),
    "damaged weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
        "weights in",
    ),
    "a weight is missing": (
        lambda folder: drop_weight(folder, "layer.1.attention.self.query.weight"),
        r"BertModel \(encoder.layer.1.attention.self.query.weight\)",
    ),
    "a layer is missing": (lambda folder: drop_weight(folder, "layer.1."), "and 11 more"),
    "another width": (lambda folder: change(folder, hidden_size=32), "weights in"),
    "no tokenizer": (
        drop_tokenizer,
        "tokenizer.json",
    ),
    "another tokenizer": (lambda folder: change(folder, vocab_size=20), "tokenizer in .*23 .*20"),
    "damaged tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer in"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_folder_is_named_with_the_fault_in_one_line(
    bert: Path, fault: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (bert / "code.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(bert)
    break_it, message = FAULTS[fault]
    break_it(bert)
    capfd.readouterr()
    with pytest.raises(UserError, match=message) as caught:
        load(bert)
    assert "\n" not in str(caught.value)
    assert str(bert) in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_loading_a_classifier_says_nothing_of_its_dropped_head(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, "bert_classifier")
    capfd.readouterr()
    load(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_name_that_cannot_be_had_is_said_in_one_line_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="none/there"):
        load_published("none/there/x", None, random=False, seed=0)
    with pytest.raises(UserError, match="nobody/nothing"):
        load_published("nobody/nothing", None, random=False, seed=0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(UserError, match="nobody/nothing") as caught:
        load_published("nobody/nothing", None, random=False, seed=0)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named_with_the_command(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"transformers.*pip install .*\[hub\]'"):
        load(bert)
