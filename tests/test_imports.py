import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

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


@cache
def own_imports(name: str) -> frozenset[str]:
    return frozenset(imported for imported in imports(name) if imported.split(".")[0] in ORDER)


def is_entry_point(name: str) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in TREES[name].body
    )


def test_the_packages_are_found() -> None:
    assert {"configs", "tokenizer.shards.format", "mlm.model.attention", "mlm.pretrain"} <= set(MODULES)
    assert "mlm.data.batches" in own_imports("mlm.objectives.masked")
    assert is_entry_point("mlm.pretrain")


def rank_of(name: str) -> int:
    return ORDER.index(name.split(".")[0])


def test_imports_go_one_way() -> None:
    assert [(name, other) for name in MODULES for other in own_imports(name) if rank_of(other) > rank_of(name)] == []


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


def test_imports_inside_a_package_go_one_way_at_every_depth() -> None:
    wrong = [
        (name, other)
        for name in MODULES
        for other in own_imports(name)
        if {part_of(name), part_of(other)} <= set(PART_RANKS)
        and part_of(name) != part_of(other)
        and rank_of(name) == rank_of(other)
        and PART_RANKS[part_of(other)] >= PART_RANKS[part_of(name)]
    ]
    assert wrong == []


def test_nobody_imports_a_benchmark_but_another_benchmark() -> None:
    others = [name for name in MODULES if ".benchmark" not in name]
    assert [(name, other) for name in others for other in own_imports(name) if ".benchmark" in other] == []


def test_modules_import_each_other_in_no_circle() -> None:
    left = {name: {other for other in own_imports(name) if other in MODULES} - {name} for name in MODULES}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def test_no_function_is_long_or_takes_many_arguments() -> None:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                given = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                assert len(set(given) - {"self", "cls"}) <= 7, f"{name}.{node.name}"
                assert (node.end_lineno or 0) - node.lineno < 55, f"{name}.{node.name}"


def test_no_folder_holds_more_than_a_dozen_modules() -> None:
    modules = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert {folder: count for folder, count in modules.items() if count > 12} == {}


def test_the_model_imports_nothing_outside_itself_but_configs() -> None:
    of_model = [name for name in MODULES if name.startswith("mlm.model")]
    others = {other for name in of_model for other in own_imports(name) if not other.startswith("mlm.model")}
    assert others <= {"configs"}


def test_nobody_imports_an_entry_point() -> None:
    entry_points = {name for name in MODULES if is_entry_point(name)}
    assert [(name, other) for name in MODULES for other in own_imports(name) if other in entry_points] == []


def test_only_the_model_side_knows_torch_and_only_configs_yaml() -> None:
    third_parties = {name: {imported.split(".")[0] for imported in imports(name)} for name in MODULES}
    assert {name.split(".")[0] for name, imported in third_parties.items() if "torch" in imported} == {
        "mlm",
        "finetune",
    }
    assert {name.split(".")[0] for name, imported in third_parties.items() if "yaml" in imported} == {"configs"}


def test_a_module_is_named_by_what_it_does() -> None:
    assert not {"utils", "util", "common", "helpers", "misc", "base"} & {
        part for name in MODULES for part in name.split(".")
    }


OPTIONAL = ("transformers", "huggingface_hub", "gradio", "onnx", "onnxruntime", "onnxscript", "wandb", "mlflow", "peft")
"""Packages that a command imports where it needs them alone."""


def test_importing_reads_no_network_prints_nothing_and_changes_no_environment() -> None:
    program = f"""
import importlib, os, socket, sys

class NoNetwork(socket.socket):
    def connect(self, *address):
        raise AssertionError(f"an import connects to {{address}}")
    connect_ex = sendto = connect

def no_lookup(*host):
    raise AssertionError(f"an import looks up {{host}}")

socket.socket, socket.getaddrinfo = NoNetwork, no_lookup
before = dict(os.environ)
for name in {sorted(MODULES)}:
    importlib.import_module(name)
print(*sorted({set(OPTIONAL)} & sys.modules.keys()), end="")
print(*(name for name in before.keys() | os.environ.keys() if os.environ.get(name) != before.get(name)), end="")
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


COMMANDS = [name for name in MODULES if is_entry_point(name) and "mlm.distributed.process" in own_imports(name)]
"""Those that compute; they set up the threads of their process."""


def test_commands_and_the_shards_benchmark_import_no_torch_before_the_threads_are_set_up() -> None:
    assert {"mlm.pretrain", "mlm.evaluate", "mlm.fill_mask", "finetune.predict"} <= set(COMMANDS)
    program = f"""
import importlib, sys
for name in {[*COMMANDS, "mlm.benchmark.data"]}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
"""
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
