"""The promises of setup.cfg: every command as a script, and every requirement among the constraints."""

import importlib
import re
from configparser import ConfigParser
from importlib.metadata import EntryPoint

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from configs import command
from configs.extras import PROJECT
from tests.test_imports import MODULES, ROOT, is_entry_point

SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
SCRIPTS = dict(line.split(" = ") for line in SETUP["options.entry_points"]["console_scripts"].strip().splitlines())
EXTRAS = {name: value.split() for name, value in SETUP["options.extras_require"].items()}
COMMANDS = [name for name in MODULES if is_entry_point(name) and ".benchmark" not in name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_the_module_of_its_name(name: str) -> None:
    module, _ = SCRIPTS[name].split(":")
    assert name == re.sub(r"[._]", "-", module.removesuffix(".__main__"))
    script = EntryPoint(name, SCRIPTS[name], "console_scripts").load()
    assert script.func is command.run
    assert script.args == (importlib.import_module(module).main,)


def test_every_command_has_its_script() -> None:
    assert sorted(COMMANDS) == sorted(value.removesuffix(":script") for value in SCRIPTS.values())


def test_the_extra_all_is_all_extras() -> None:
    reached, new = set(), {"all"}
    while new:
        reached |= new
        needed = (Requirement(text) for name in new for text in EXTRAS[name])
        new = {extra for need in needed if need.name == PROJECT for extra in need.extras} - reached
    assert reached == set(EXTRAS)


def test_every_requirement_is_pinned_by_the_constraints_to_what_it_allows() -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    needed = [Requirement(text) for text in SETUP["options"]["install_requires"].split()]
    needed += [Requirement(text) for texts in EXTRAS.values() for text in texts]
    others = [need for need in needed if need.name != PROJECT]
    outside = [need for need in others if versions.get(canonicalize_name(need.name), "missing") not in need.specifier]
    assert outside == []
