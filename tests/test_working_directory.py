"""Every command starts in any directory, whatever folders it holds: an install in place, tried by a real one."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.processes import ROOT, run

OURS = ("configs", "tokenizer", "mlm", "finetune", "tests")
COMMANDS = ("mlm.status", "tokenizer.train", "finetune.compare")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment in which this checkout is installed in place, as README says."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    installed = run([*install, "--no-build-isolation", "-e", ROOT])
    assert installed.returncode == 0, installed.stderr
    return python


def started(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return run([python, *arguments], cwd=folder, env=environment)


@pytest.mark.parametrize("command", COMMANDS)
def test_plain_folders_with_our_names_hide_nothing(python: Path, tmp_path: Path, command: str) -> None:
    for name in OURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    done = started(python, tmp_path, "-m", command, "--help")
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


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
from tokenizer.shards.workers import Workers
from tokenizer.sources import Document
learned = vocabulary.learn(iter(["a short text"]), vocabulary.VocabularyConfig(size=261))  # bytes, and no merges
workers = Workers(TextConfig(), learned, 1, 0)
print(len(workers.submit([Document("Some text.")]).result()[1].tokens))
workers.close()
"""
    done = started(python, tmp_path, "-P", "-c", program)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr
