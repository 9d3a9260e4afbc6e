import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("configs", "tokenizer", "mlm", "finetune")
"""Each package may import those before it."""
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ORDER
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> Iterator[str]:
    """Yield the full name of all that a module imports, inside functions too."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in MODULES else str(node.module)


def own_imports(name: str) -> set[str]:
    return {imported for imported in imports(name) if imported.split(".")[0] in ORDER}


def is_entry_point(name: str) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in TREES[name].body
    )


def test_the_packages_are_found() -> None:
    assert {"configs", "tokenizer.shards.format", "mlm.model.attention", "mlm.pretrain"} <= set(MODULES)
    assert "mlm.data.batches" in own_imports("mlm.objectives.masked")
    assert is_entry_point("mlm.pretrain")


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name: str) -> None:
    rank = ORDER.index(name.split(".")[0])
    assert [other for other in own_imports(name) if ORDER.index(other.split(".")[0]) > rank] == []


INSIDE = {
    "mlm": (
        *(
            "model data",
            "distributed",
            "objectives",
            "training",
            "config",
            "checkpoint",
            "evaluation build interop",
            "tracking",
        ),
        *(
            "experiment sweeps",
            "dry_run",
            "pretrain evaluate fill_mask status export convert sweep report",
            "benchmark",
        ),
    ),
    "finetune": (
        *("data", "encoders evaluation", "heads", "training", "config", "trial saved_model"),
        *("experiment interop table", "command_line"),
        *("cnn_head linear_head suite predict compare export texts demo", "benchmark"),
    ),
    "tokenizer": (
        *(
            "mixture",
            "sources sentences special_tokens",
            "kinds",
            "vocabulary",
            "cached_encoder",
            "cleaning",
            "shards",
            "cache",
        ),
        *("added_words command_line", "train encode"),
    ),
}
"""The parts of each package, a level a string; a part imports those of the levels before its own, and itself."""
PART_RANKS = {
    f"{package}.{part}": rank
    for package, levels in INSIDE.items()
    for rank, level in enumerate(levels)
    for part in level.split()
}


def part_of(name: str) -> str:
    return ".".join(name.split(".")[:2])


def test_every_part_of_a_package_has_its_place_in_the_order() -> None:
    parts = {part_of(name) for name in MODULES if "." in name and not name.startswith("configs")}
    assert parts == set(PART_RANKS)


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name) in PART_RANKS])
def test_imports_inside_a_package_go_one_way_at_every_depth(name: str) -> None:
    own = part_of(name)
    others = {part_of(other) for other in own_imports(name)} & set(PART_RANKS) - {own}
    same_package = {other for other in others if other.split(".")[0] == own.split(".")[0]}
    assert [other for other in sorted(same_package) if PART_RANKS[other] >= PART_RANKS[own]] == []


@pytest.mark.parametrize("name", MODULES)
def test_nobody_imports_a_benchmark_but_another_benchmark(name: str) -> None:
    if ".benchmark" not in name:
        assert [other for other in own_imports(name) if ".benchmark" in other] == []


def test_modules_import_each_other_in_no_circle() -> None:
    left = {name: {other for other in own_imports(name) if other in MODULES} - {name} for name in MODULES}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert sorted(left) == []


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_long_or_takes_many_arguments(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef):
            given = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len(set(given) - {"self", "cls"}) <= 7, node.name
            assert (node.end_lineno or 0) - node.lineno < 55, node.name


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}))
def test_no_folder_holds_more_than_a_dozen_modules(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 12


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("mlm.model")])
def test_the_model_imports_nothing_outside_itself_but_configs(name: str) -> None:
    assert {other for other in own_imports(name) if not other.startswith("mlm.model")} <= {"configs"}


@pytest.mark.parametrize("name", MODULES)
def test_nobody_imports_an_entry_point(name: str) -> None:
    assert [other for other in own_imports(name) if other in MODULES and is_entry_point(other)] == []


@pytest.mark.parametrize("name", MODULES)
def test_only_the_model_side_knows_torch_and_only_configs_yaml(name: str) -> None:
    third_parties = {imported.split(".")[0] for imported in imports(name)}
    if not name.startswith(("mlm", "finetune")):
        assert "torch" not in third_parties
    if not name.startswith("configs"):
        assert "yaml" not in third_parties


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_named_by_what_it_does(name: str) -> None:
    assert not {"utils", "util", "common", "helpers", "misc", "base"} & set(name.split("."))


OPTIONAL = ("transformers", "huggingface_hub", "gradio", "onnx", "onnxruntime", "onnxscript", "wandb", "mlflow", "peft")
"""Packages that a command imports where it needs them alone."""


def test_importing_reads_no_network_and_prints_nothing() -> None:
    program = f"""
import importlib, socket, sys

class NoNetwork(socket.socket):
    def connect(self, *address):
        raise AssertionError(f"an import connects to {{address}}")
    connect_ex = sendto = connect

def no_lookup(*host):
    raise AssertionError(f"an import looks up {{host}}")

socket.socket, socket.getaddrinfo = NoNetwork, no_lookup
for name in {sorted(MODULES)}:
    importlib.import_module(name)
print(*sorted({set(OPTIONAL)} & sys.modules.keys()), end="")
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


COMMANDS = [name for name in MODULES if is_entry_point(name) and "mlm.distributed.process" in own_imports(name)]
"""Those that compute; they set up the threads of their process."""


def test_the_commands_that_compute_are_found() -> None:
    assert {"mlm.pretrain", "mlm.evaluate", "mlm.fill_mask", "finetune.predict"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_no_torch_before_it_has_set_up_its_threads(name: str) -> None:
    program = f"import sys, {name}; print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.split() == ["False"], process.stderr


def test_importing_changes_no_environment() -> None:
    program = f"""
import importlib, os, torch
before = dict(os.environ)
for name in {sorted(MODULES)}:
    importlib.import_module(name)
changed = [name for name in os.environ if os.environ[name] != before.get(name) and not name.startswith("TORCH")]
print(changed, os.environ.keys() >= before.keys())
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.split("\n")[0] == "[] True", process.stderr
