from pathlib import Path

import pytest

from tests.finetune import samples


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def run_with_cls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.make_run(tmp_path_factory.mktemp("runs"), cls_sep=True)
