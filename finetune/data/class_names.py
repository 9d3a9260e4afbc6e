"""Names of classes as tables, pictures and messages show them."""

from collections.abc import Sequence

import configs

LONGEST_NAME = 24
MOST_CLASSES = 40
"""Number of classes in a table, a picture or a message; a table or a picture shows those that are confused most."""


def listed(class_names: Sequence[str]) -> str:
    """Return the first names for a message, and the number of the others."""
    return configs.listed(map(short, class_names), MOST_CLASSES)


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name on one line, without control characters, of at most `longest` characters.

    One that nobody would see is shown by its codes.
    """
    printable = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split()) or ascii(name)
    return printable if len(printable) <= longest else printable[: longest - 3].rstrip() + "..."
