import importlib.metadata
from pathlib import Path

import pytest

from configs import UserError, extras


def test_missing_packages_are_named_with_the_command_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    extras.require("yaml", "pydantic", extra="demo", purpose="pages")
    with pytest.raises(UserError, match=r"^not installed: no_such_package, for pages: pip install .*\[demo\]'$"):
        extras.require("yaml", "no_such_package", extra="demo", purpose="pages")
    monkeypatch.setattr(importlib.metadata.Distribution, "discover", lambda **names: iter(()))
    with pytest.raises(UserError) as caught:  # of a checkout that is not installed: never another project of our name
        extras.require("no_such_package", extra="demo", purpose="pages")
    assert f"pip install -e '{Path(extras.__file__).parents[1]}[demo]'" in str(caught.value)


def test_a_folder_of_that_name_in_the_working_directory_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "records_of_a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="records_of_a_tracker"):
        extras.require("records_of_a_tracker", extra="demo", purpose="pages")
