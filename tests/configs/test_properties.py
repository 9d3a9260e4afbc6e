"""Whatever stands in a recipe, reading it ends in a recipe that can be written and read again, or in one line."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from configs import Config, UserError, dump, read
from finetune.config import FinetuneConfig
from mlm.config import PretrainConfig


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def plausible(default: Any) -> st.SearchStrategy[Any]:
    """Draw what an option with this default may well be set to."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(1, 512)
    if isinstance(default, float):
        return st.floats(1e-9, 0.999)
    return st.just(default)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def settings(defaults: Config) -> st.SearchStrategy[dict[str, Any]]:
    """Draw options and what they are set to: to what they may well be, or real and invented ones to anything."""
    known = dict(leaves(defaults.model_dump(mode="json")))
    names = st.sampled_from(sorted(known))
    tame = names.flatmap(lambda name: st.tuples(st.just(name), plausible(known[name])))
    wild = st.tuples(names | st.text(min_size=1, max_size=12), ANYTHING)
    return (st.lists(tame, max_size=3) | st.lists(tame | wild, max_size=5)).map(dict)


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in options.items():
        *sections, name = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                break
        else:
            place[name] = value
    return tree


def recipe_of(model: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config | None:
    """Return the recipe, or None where a mistake was told, in one line."""
    message = ""
    try:
        return read(model, path, overrides)
    except UserError as error:
        message = str(error)
    assert message
    assert len(message.splitlines()) == 1
    return None


@pytest.mark.parametrize("model", [PretrainConfig, FinetuneConfig])
def test_any_file_is_a_config_or_gets_one_line(model: type[Config]) -> None:
    read_well = []

    @profile(max_examples=200)  # of which a part is right
    @given(settings(model()))
    def check(options: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.yaml"
            path.write_text(yaml.safe_dump(nested(options), allow_unicode=True), encoding="utf-8")
            recipe = recipe_of(model, path)
            if recipe is None:
                return
            read_well.append(recipe)
            path.write_text(dump(recipe), encoding="utf-8")
            assert read(model, path) == recipe
            for name, value in leaves(recipe.model_dump()):
                assert not isinstance(value, float) or math.isfinite(value), name

    check()
    assert len({str(recipe) for recipe in read_well}) > 10


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_config_or_get_one_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        recipe_of(PretrainConfig, path)


@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_overrides_are_a_config_or_get_one_line(overrides: list[str]) -> None:
    recipe_of(PretrainConfig, None, overrides)
