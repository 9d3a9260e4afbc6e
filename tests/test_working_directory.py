"""Every command starts in any directory, whatever folders it holds: in place and of a wheel, tried by real installs."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.processes import ROOT, run

OURS = ("configs", "tokenizer", "mlm", "finetune", "tests")
COMMANDS = ("mlm.status", "tokenizer.train", "finetune.compare")
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""The environment of a process that sees this checkout only where it is installed."""


def installed(folder: Path, *what: str) -> Path:
    """Return the Python of a new environment in `folder` that has the dependencies, and of this project `what`."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    ended = run([*pip, "--no-build-isolation", "--force-reinstall", *what], env=OUTSIDE)
    assert ended.returncode == 0, ended.stderr
    return python


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment in which this checkout is installed in place, as README says."""
    pytest.importorskip("setuptools")
    return installed(tmp_path_factory.mktemp("in_place"), "-e", str(ROOT))


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment in which the wheel of this checkout is installed."""
    pytest.importorskip("build", reason="builds a wheel")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    ended = run(build, env=OUTSIDE, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return installed(folder, *map(str, folder.glob("*.whl")))


def started(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([python, *arguments], cwd=folder, env=OUTSIDE)


@pytest.mark.parametrize(
    ("install", "command"), [*(("python", command) for command in COMMANDS), ("wheel_python", "tokenizer.train")]
)
def test_plain_folders_with_our_names_hide_nothing(
    install: str, command: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    done = started(request.getfixturevalue(install), tmp_path, "-m", command, "--help")
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


@pytest.mark.parametrize("install", ["python", "wheel_python"])
def test_a_script_starts_beside_packages_of_our_names_and_finds_the_recipes(
    install: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    scripts: Path = request.getfixturevalue(install).parent
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError\n")
    done = started(scripts / "mlm-pretrain", tmp_path, "modern", "--print-config")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("name: modern\n")
    done = started(scripts / "tokenizer-train", tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    assert "  tokenizer-train --output tokenizer.json\n" in done.stdout
    assert "python -m" not in done.stdout


def test_the_wheel_holds_the_packages_the_recipes_and_the_licence_alone(wheel_python: Path) -> None:
    (wheel,) = wheel_python.parents[1].glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"own_packages.py", *OURS} - {"tests"}
    assert [name for name in names if "benchmark" in name or "test" in name.lower()] == []
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert recipes <= names
    modules = (path.relative_to(ROOT) for package in set(OURS) - {"tests"} for path in (ROOT / package).rglob("*.py"))
    assert {str(path) for path in modules if "benchmark" not in path.parts} <= names
    assert [name for name in names if name.endswith("licenses/LICENSE")]


@pytest.mark.parametrize(("hidden", "command"), [("configs", "mlm.status"), ("tokenizer", "finetune.compare")])
def test_a_package_that_hides_ours_is_named_in_one_line_and_can_be_passed_by(
    python: Path, tmp_path: Path, hidden: str, command: str
) -> None:
    (tmp_path / hidden).mkdir()
    (tmp_path / hidden / "__init__.py").touch()
    done = started(python, tmp_path, "-m", command, "--help")
    assert done.returncode
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / hidden) in done.stderr
    assert started(python, tmp_path, "-P", "-m", command, "--help").returncode == 0


def test_the_tests_of_another_project_are_importable_beside_ours(python: Path, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "helper.py").write_text("ANSWER = 42\n")
    done = started(python, tmp_path, "-c", "from tests.helper import ANSWER; print(ANSWER)")
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


def test_a_package_that_hides_one_that_is_not_needed_is_no_mistake(python: Path, tmp_path: Path) -> None:
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "__init__.py").touch()
    assert started(python, tmp_path, "-m", "mlm.status", "--help").returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_working_directory_that_was_removed_is_one_line(python: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "removed").mkdir()
    script = ["-c", 'cd removed && rmdir ../removed && exec "$0" -m "$1" --help', str(python), command]
    done = started(Path("sh"), tmp_path, *script)
    assert done.returncode
    assert done.stderr.count("\n") == 1
    assert "working directory was removed" in done.stderr


def test_processes_that_encode_find_our_packages_where_the_parent_does(python: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "__init__.py").touch()
    program = """
from tokenizer import vocabulary
from tokenizer.cleaning import TextConfig
from functools import partial
from tokenizer.shards.build import start_encoding
from tokenizer.shards.workers import Workers
learned = vocabulary.learn(iter(["a short text"]), vocabulary.VocabularyConfig(size=261))  # bytes, and no merges
workers = Workers(partial(start_encoding, TextConfig(), learned.to_str(), False), 1)
print(len(workers.submit((("Some text.",),)).result()[1].tokens))
workers.close()
"""
    done = started(python, tmp_path, "-P", "-c", program)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr
