"""configs/schema.json, by which editors complete and check recipes, agrees with the reader of recipes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import Config, UserError, read
from finetune.config import FinetuneConfig
from mlm.config import PretrainConfig
from mlm.sweeps.config import SweepConfig
from tests import schema
from tests.test_readme import RECIPES

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema, of the extra test, is not installed")

CONFIGS: dict[str, type[Config]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "sweep": SweepConfig}


class Editor(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does (section 10.3.2 of its specification), and so editors do."""


Editor.yaml_implicit_resolvers = {}
for tag, pattern in (
    ("null", r"null|Null|NULL|~|$"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?[0-9]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
):
    Editor.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), None)


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    """Return a validator of each kind of recipe, by the committed file."""
    shared = json.loads(schema.PATH.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(shared)
    return {
        folder: jsonschema.Draft202012Validator(shared | {"anyOf": [{"$ref": f"#/$defs/{model.__name__}"}]})
        for folder, model in CONFIGS.items()
    } | {"either": jsonschema.Draft202012Validator(shared)}


def test_the_file_is_what_the_configurations_give() -> None:
    assert json.loads(schema.PATH.read_text(encoding="utf-8")) == schema.schema(), "run: python -m tests.schema"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_names_the_schema_which_takes_it(recipe: Path, validators: dict[str, Any]) -> None:
    text = recipe.read_text(encoding="utf-8")
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", text, re.MULTILINE)
    assert (recipe.parent / named).resolve() == schema.PATH
    folder = recipe.relative_to(schema.PATH.parent).parts[0]
    for loader in (Editor, yaml.SafeLoader):
        values = yaml.load(text, loader)
        for name in (folder, "either"):
            assert [error.message for error in validators[name].iter_errors(values)] == []


RIGHT = (
    ("pretrain", "optim: {lr: 1e-4}"),
    ("pretrain", "optim: {kind: muon, momentum: .9}"),
    ("pretrain", "train: {budget: {steps: 20_000}, batch_rows: 1_024, micro_batch_rows: null}"),
    ("pretrain", "train: {budget: {kind: minutes, minutes: 2.5e+1}}"),
    ("pretrain", "{name: 2026, start_from: null}"),
    ("pretrain", "text: {source: {kind: files, paths: [a.txt, 7]}}"),
    ("finetune", "data: {kind: labelled, train: one.csv, text: 1, label: 2}"),
    ("pretrain", "text: {source: {kind: files, paths: a.txt, columns: [title, text]}}"),
    ("finetune", "head: {kind: linear, pooling: mean}"),
)
WRONG = (
    ("pretrain", "modle: {}"),
    ("pretrain", "optim: {lrr: 1e-4}"),
    ("pretrain", "optim: {momentum: .9}"),
    ("pretrain", "optim: {kind: adam}"),
    ("pretrain", "optim: {kind: adamw, momentum: .9}"),
    ("pretrain", "optim: {lr: fast}"),
    ("pretrain", "optim: {lr: 0}"),
    ("pretrain", "optim: {lr: null}"),
    ("pretrain", "optim: {lr: true}"),
    ("pretrain", "train: {batch_rows: 2.5}"),
    ("pretrain", "train: {batch_rows: [8]}"),
    ("pretrain", "train: {budget: {minutes: 5}}"),
    ("pretrain", "train: {precision: half}"),
    ("pretrain", "name: a/b"),
    ("pretrain", "head: {kind: cnn}"),
    ("finetune", "head: {kind: linear, widths: [3]}"),
    ("finetune", "train: {seeds: 3}"),
    ("finetune", "model: {}"),
)


@pytest.mark.parametrize(("folder", "text"), RIGHT)
def test_what_the_reader_takes_is_right(folder: str, text: str, validators: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    read(CONFIGS[folder], tmp_path / "recipe.yaml")
    assert [error.message for error in validators[folder].iter_errors(yaml.load(text, Editor))] == []


@pytest.mark.parametrize(("folder", "text"), WRONG)
def test_what_the_reader_refuses_is_wrong(folder: str, text: str, validators: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError):
        read(CONFIGS[folder], tmp_path / "recipe.yaml")
    assert not validators[folder].is_valid(yaml.load(text, Editor))


def test_settings_are_described_to_the_user_of_an_editor() -> None:
    definitions = schema.schema()["$defs"]
    described = definitions["PretrainConfig"]["properties"]["start_from"]["description"]
    assert described.startswith("A run such as runs/x")
    assert "\n" not in described
    assert definitions["AdamW"]["properties"]["lr"]["description"] == "Peak learning rate."
