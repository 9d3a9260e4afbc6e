import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import UserError
from tests.tokenizer.hub import COMMIT, serving
from tokenizer.sources import hub
from tokenizer.sources.hub import commit, commit_unless_offline, read_split

CARD = b"""---
dataset_info:
  features:
  - {name: text, dtype: string}
  - name: label
    dtype:
      class_label:
        names: {'0': worse, '1': better}
configs:
- config_name: default
  data_files:
  - {split: train, path: train.csv}
---
"""
FILES = {"README.md": CARD, "train.csv": b"text,label\nOne.,1\nTwo.,0\nThree.,-1\n"}

LABELLED = f"""Labelled(
    hub='me/tiny', revision={COMMIT!r}, hub_splits=HubSplits(validation=None)
).load(TextConfig()).class_names"""


def evaluate(folder: Path, expression: str, **environment: str) -> str:
    """Evaluate an expression in a process that keeps what it fetches in `folder`."""
    script = (
        "import sys\nfrom configs import UserError\nfrom tokenizer.sources import hub\n"
        "from finetune.data.labelled import HubSplits, Labelled\nfrom tokenizer.cleaning import TextConfig\n"
        "try: print(eval(sys.argv[1]))\nexcept UserError as error: print(error)"
    )
    variables = {**os.environ, "HF_HOME": str(folder), **environment}
    words = [sys.executable, "-c", script, expression]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=variables).stdout.rstrip("\n")


def test_a_split_is_fetched_once_with_its_classes_by_name(tmp_path: Path) -> None:
    read = f"hub.read_split('me/tiny', None, 'train', {COMMIT!r}, ['text', 'label'], 'name another')"
    with serving("me/tiny", FILES) as address:
        found = evaluate(tmp_path, read, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
        missing = evaluate(tmp_path, read.replace("'label'", "'x'"), HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    rows = [{"text": "One.", "label": "better"}, {"text": "Two.", "label": "worse"}, {"text": "Three.", "label": ""}]
    assert found == repr(rows)
    assert missing == "the hub's me/tiny, split train: no column 'x'; there are: text, label: name another"
    assert evaluate(tmp_path, read, HF_HUB_OFFLINE="1") == repr(rows)


def test_classes_are_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    """Not by letters: F1 is that of the second, which a task's published scores choose."""
    with serving("me/tiny", {**FILES, "train.csv": b"text,label\nOne.,1\nTwo.,0\n"}) as address:
        names = evaluate(tmp_path, LABELLED, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    assert names == "('worse', 'better')"


def test_without_a_network_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/nothing .* hub \(") as caught:
        read_split("nobody/nothing", None, "train", None, ("text",), "")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"nobody/nothing .* hub \("):
        commit("nobody/nothing", None)


def test_offline_a_revision_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert commit_unless_offline("nobody/nothing", "v1") == "v1"


def test_a_failure_names_the_kind_of_an_error_without_words() -> None:
    assert "TimeoutError" in hub.failure("me/tiny", TimeoutError())
