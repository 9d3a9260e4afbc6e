"""A folder with a text and a recipe, and one process's run of it."""

from pathlib import Path

import pytest

from tests.distributed.jobs import RECIPE, run_of
from tests.processes import call


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    words = ("the", "old", "dog", "sees", "a", "red", "house", "under", "grey", "clouds", "and", "hears", "rain")
    lines = [" ".join(words[(n * k) % len(words)] for k in range(1, 5 + n % 9)) for n in range(1, 400)]
    (folder / "text.txt").write_text(".\n".join(lines) + ".\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    """Return the finished run of one process."""
    done = call(home, "mlm.pretrain", "recipe.yaml", "name=alone")
    assert done.returncode == 0, done.stderr
    return run_of(home, "alone")
