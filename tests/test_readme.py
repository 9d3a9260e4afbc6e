"""Every command in the README and in the recipes is one that the project understands."""

import importlib
import shlex
from pathlib import Path

import pytest

from configs import command as command_line
from configs import read

ROOT = Path(__file__).parent.parent
BLOCKS = "\n".join((ROOT / "README.md").read_text().split("```")[1::2])
HEADERS = "\n".join(path.read_text() for path in sorted(ROOT.glob("configs/*/*.yaml")))
COMMANDS = sorted(
    line[line.index("python -m ") :].strip() for line in (BLOCKS + "\n" + HEADERS).splitlines() if "python -m " in line
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    module = importlib.import_module(words[2])
    if "--help" in words:
        with pytest.raises(SystemExit, match=r"^0$"):
            module.parse(words[3:])
        return
    options = module.parse(words[3:])
    if "recipe" in options and not getattr(options, "resume", None):
        read(module.Recipe, *command_line.split(options.recipe))


def test_the_readme_names_every_recipe_and_every_module() -> None:
    text = (ROOT / "README.md").read_text()
    recipes = [path.stem for path in ROOT.glob("configs/*/*.yaml")]
    packages = ("tokenizer", "mlm", "mlm/model", "finetune")
    modules = [path.stem for package in packages for path in (ROOT / package).glob("*.py")]
    assert [name for name in recipes + modules if name not in text and name != "__init__"] == []


def test_every_recipe_opens_with_its_command_its_cost_and_what_to_expect() -> None:
    for path in ROOT.glob("configs/*/*.yaml"):
        header = path.read_text().split("\nname:")[0]
        assert {"pretrain": "python -m mlm.pretrain", "finetune": "python -m finetune."}[path.parent.name] in header
        assert "Cost: " in header
        assert "Expected " in header


def test_nothing_is_left_to_be_filled_in() -> None:
    for path in (ROOT / "README.md", *ROOT.glob("configs/*/*.yaml")):
        assert [word for word in ("COST", "EXPECTED", "_TABLE", "???") if word in path.read_text()] == []
