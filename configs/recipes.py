"""Find the recipes that come with this package by their names."""

import difflib
import os
from pathlib import Path
from typing import Literal

from configs import UserError

Task = Literal["pretrain", "finetune", "sweep"]
"""A folder of recipes beside this module."""


def known(task: Task) -> dict[str, Path]:
    """Return the files of the recipes for a task by their names, such as quickstart or full_size/activation."""
    folder = Path(__file__).parent / task
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find(word: str, task: Task) -> Path:
    """Return the file that `word` names, or else the recipe of that name; raise a UserError if there is neither."""
    recipes = known(task)
    if os.path.exists(word) and not os.path.isdir(word):  # noqa: PTH110, PTH112 - a long word is no error
        return Path(word)
    if word in recipes:
        return recipes[word]
    spellings = (word.removesuffix(".yaml"), Path(word).stem)
    near = [one for spelling in spellings for one in difflib.get_close_matches(spelling, recipes, n=1)]
    raise UserError(
        f"no such file or recipe: {word}: {f'did you mean {near[0]}? ' if near else ''}known recipes: "
        f"{', '.join(recipes)} (an option is written section.key=value)"
    )


def folders(task: Task) -> dict[str, Path]:
    """Return the folders of the recipes for a task that belong together, by their names, such as glue."""
    return {path.parent.name: path.parent for path in known(task).values() if path.parent.name != task}


def folder(word: str, task: Task) -> Path:
    """Return the folder that `word` names, or else that of recipes of that name; a UserError if there is neither.

    A folder without recipes, such as one of the data of a suite, does not hide a suite of its name.
    """
    known_folders, named = folders(task), Path(word)
    if named.is_dir() and (word not in known_folders or any(named.glob("*.yaml"))):
        return named
    if word in known_folders:
        return known_folders[word]
    raise UserError(f"no such folder: {word}: name one with recipes, or one of {', '.join(known_folders)}")


def listing(task: Task) -> str:
    """Return the recipes for a task, a line each: name and the first line of its header."""
    recipes = known(task)
    width = max(map(len, recipes))
    headlines = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in recipes.items()}
    return "\n".join(f"  {name:{width}}  {line.removeprefix('# ')}" for name, line in headlines.items())
