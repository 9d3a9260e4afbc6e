"""Refuse packages of another project that hide ours; any of ours may be hidden, so that this file belongs to none."""

from importlib.util import find_spec
from pathlib import Path

ORDER = ("configs", "tokenizer", "mlm", "finetune")
"""The packages; each imports those before it."""


def check(importer: str) -> None:
    """Raise an ImportError if Python would give `importer` another project's package for one that it imports.

    In a working directory that was removed, libraries end the process in ways of their own: that is told first.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ImportError("the working directory was removed: change to one that is there", name=importer) from None
    for name in ORDER[: ORDER.index(importer)]:
        spec = find_spec(name)
        found = spec.submodule_search_locations if spec else None
        if found and Path(found[0]).resolve() != Path(__file__).resolve().with_name(name):
            raise ImportError(
                f"{found[0]} hides the package {name} of this project: rename that folder, or start by a script such as"
                " mlm-pretrain or by python -P -m, which look for no packages in the working directory",
                name=importer,  # python -m prints the line of such an error, without a traceback
            )
