"""README, CONTRIBUTING, the pages in docs and the recipes' headers say what the project understands and holds."""

import ast
import importlib
import importlib.util
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from configs import command as command_line
from configs import read, recipes
from finetune.config import FinetuneConfig
from mlm.config import PretrainConfig

ROOT = Path(__file__).parent.parent
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = (README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md")))
RECIPES = sorted(ROOT.glob("configs/**/*.yaml"))
PACKAGES = ("configs", "tokenizer", "mlm", "finetune")
LONGEST_README = 150
LONGEST_CELL = 120
LARGEST_PICTURE_BYTES = 150_000


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page that are marked as `language`; the plain ones are marked as nothing."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [code for marked, code in found if marked == language]


def commands_of_pages() -> Iterator[str]:
    """Yield every command, on one line, in the pages' plain blocks and the recipes' headers."""
    texts = [block for page in PAGES for block in blocks(page, "")]
    texts += [recipe.read_text(encoding="utf-8") for recipe in RECIPES]
    for line in "\n".join(texts).replace("\\\n", " ").splitlines():
        place = re.search(r"(python|torchrun|accelerate launch)\b.* -m |python -m ", line)
        if place is not None:
            yield line[line.index("-m ") :].partition("#")[0].strip()


def cells(page: Path) -> Iterator[str]:
    """Yield the cells of a page's tables."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            yield from (cell.strip() for cell in line.strip("|").split("|"))


def is_run(path: Path) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def module_run_by(name: str) -> ModuleType:
    """Return the module that `python -m name` runs."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def check_settings(name: str, words: list[str]) -> None:
    task: recipes.Task = "pretrain" if name == "mlm.pretrain" else "finetune"
    yaml, overrides = command_line.split(words, task)
    if task == "pretrain":
        read(PretrainConfig, yaml, overrides)
    else:
        kind = "linear" if name == "finetune.linear_head" else "cnn"
        labelled = ["data.kind=labelled"] if name == "finetune.texts" else []
        read(FinetuneConfig, yaml, [*labelled, f"head.kind={kind}", *overrides])


@pytest.mark.parametrize("command", sorted(set(commands_of_pages())))
def test_a_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, name, *words = shlex.split(command)
    if name.startswith("tests."):
        assert importlib.util.find_spec(name) is not None
        return
    module = module_run_by(name)
    if "--help" in words:
        with pytest.raises(SystemExit, match=r"^0$"):
            module.parse(words)
        return
    options = module.parse(words)
    if "recipe" in options and not getattr(options, "resume", None):
        check_settings(name, options.recipe)


def test_the_readme_names_every_command_recipe_and_sub_package() -> None:
    named = set(
        re.findall(r"[\w.]+/?", README.read_text(encoding="utf-8").partition("## The map")[2].partition("```\n\n")[0])
    )
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources}
    commands = [name.removesuffix(".__main__") for name, path in modules.items() if is_run(path)]
    names = {name.rpartition(".")[2] for name in commands}
    names |= {f"{recipe.parent.name}/" for recipe in RECIPES}
    names |= {recipe.stem for recipe in RECIPES if recipe.parent.name in ("pretrain", "finetune")}
    names |= {f"{path.parent.name}/" for path in sources if path.name == "__init__.py"}
    assert names - named == set()


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_cell_is_a_paragraph(page: Path) -> None:
    assert [cell for cell in cells(page) if len(cell) > LONGEST_CELL] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join((*PACKAGES, 'tests', 'docs'))})/[\w./-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_table_of_what_to_touch_names_files() -> None:
    _, _, section = CONTRIBUTING.read_text(encoding="utf-8").partition("## To add something")
    rows = [
        line.split("|")[2].strip(" `") for line in section.partition("\n## ")[0].splitlines() if line.startswith("| a")
    ]
    assert len(rows) >= 7
    assert [path for path in rows if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_on_a_page_compiles_and_imports_what_is_there(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_picture_of_a_batch_is_drawn_by_the_code_that_makes_batches(tmp_path: Path) -> None:
    drawn = tmp_path / "batch.png"
    runpy.run_path(str(ROOT / "docs" / "batch_picture.py"))["main"](drawn)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    for picture in (drawn, ROOT / "docs" / "batch.png"):
        assert picture.stat().st_size < LARGEST_PICTURE_BYTES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_opens_with_its_command_its_cost_and_what_to_expect(recipe: Path) -> None:
    header = recipe.read_text(encoding="utf-8").split("\nname:")[0]
    commands = {"pretrain": "mlm.pretrain", "finetune": "finetune.", "sweep": "mlm.sweep"}
    assert f"python -m {commands[recipe.relative_to(ROOT).parts[1]]}" in header
    assert "Cost: " in header
    assert "Expected " in header


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [word for word in ("COST", "EXPECTED", "_TABLE", "???") if word in text] == []


def test_the_table_of_what_to_touch_uses_names_that_stand_in_the_file() -> None:
    _, _, section = CONTRIBUTING.read_text(encoding="utf-8").partition("## To add something")
    rows = re.findall(r"^\| an? [^|]+ \| `([^`]+)` \| (.*) \|$", section, re.MULTILINE)
    assert len(rows) > 15
    for path, instruction in rows:
        words = set(re.findall(r"\w+", (ROOT / path).read_text(encoding="utf-8")))
        named = re.findall(r"`([\w.]+)`", instruction)
        assert [name for name in named if name.split(".")[-1] not in words] == [], path


def test_the_core_is_as_short_as_it_says_and_stays_so() -> None:
    told = re.search(r"`mlm/training`: ([\d,]+) lines together", README.read_text(encoding="utf-8"))
    assert told is not None
    folders = [ROOT / "mlm" / name for name in ("model", "data", "objectives", "training")]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for one in folders for path in one.rglob("*.py"))
    assert int(told[1].replace(",", "")) == lines < 2500
