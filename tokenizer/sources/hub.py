"""Data sets of the Hugging Face hub: the one place that asks it for data.

With HF_HUB_OFFLINE=1 in the environment nothing is fetched, and `read_split` uses what was fetched before.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from configs import UserError
from tokenizer.sources.readers import Row, check_columns, text_rows


@functools.cache
def commit(name: str, revision: str | None) -> str:
    """Return the commit that `revision` of a data set stands for now, null for its newest; asked once a process.

    Raises:
        UserError: no network, or no such data set or revision.

    """
    import huggingface_hub

    try:
        return str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:  # it lets through the errors of the HTTP library below it
        raise UserError(failure(name, error)) from error


def commit_unless_offline(name: str, revision: str | None) -> str | None:
    """Return the commit that `revision` stands for now; offline, `revision` itself.

    Raises:
        UserError: no network, or no such data set or revision.

    """
    import huggingface_hub

    return revision if huggingface_hub.is_offline_mode() else commit(name, revision)


def stream(name: str, configuration: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """Yield the rows of a data set's split while they are fetched.

    Args:
        name: of the data set, such as Salesforce/wikitext.
        configuration: which of its configurations (its 'subset'); None: its default.
        split: which of its splits.
        revision: a commit, branch or tag; None: the newest.

    Raises:
        UserError: no network, or no such data set, configuration, split or revision.
        ConnectionError: the network failed after the first row.

    """
    fault: type[ValueError | OSError] = UserError
    try:
        for number, row in enumerate(_load(name, configuration, split, revision, streaming=True), start=1):
            fault = ConnectionError
            yield Row(f"the hub's {name}, row {number}", row)
    except Exception as error:  # it lets through the errors of every library below it
        raise fault(failure(name, error)) from error


def read_split(
    name: str, configuration: str | None, split: str, revision: str | None, columns: Sequence[str], mend_columns: str
) -> list[dict[str, str]]:
    """Return the rows of a data set's split, fetched once: each value as text, a missing one as the empty text.

    Args:
        name: as of `stream`, and so are `configuration`, `split` and `revision`.
        configuration: see there.
        split: see there.
        revision: see there.
        columns: names of the columns to return. One of classes gives their names; -1, a label not given, is missing.
        mend_columns: the words for a missing column: where to name the right one.

    Raises:
        UserError: no network, no such data set, configuration, split, revision or column, or no rows.

    """
    import datasets

    try:
        table = _load(name, configuration, split, revision, streaming=False)
    except Exception as error:  # it lets through the errors of every library below it
        raise UserError(failure(name, error)) from error
    where = f"the hub's {name}, split {split}"
    check_columns(columns, table.column_names, where, mend_columns)
    classes = {
        column: dict(enumerate(table.features[column].names))
        for column in columns
        if isinstance(table.features[column], datasets.ClassLabel)
    }
    rows = (
        Row(
            f"{where}, row {number}",
            {**row, **{column: names.get(row[column], "") for column, names in classes.items()}},
        )
        for number, row in enumerate(table.select_columns(list(columns)), start=1)
    )
    return text_rows(rows, columns, where, mend_columns)


def failure(name: str, error: Exception) -> str:
    """Return one line on a failure to read `name` from the hub: the reason, and how to mend it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"cannot read {name} from the Hugging Face hub ({reason}): check the name and the network, or name a local copy"
    )


def _load(name: str, configuration: str | None, split: str, revision: str | None, *, streaming: bool) -> Any:
    import datasets  # takes a second, and most text comes from elsewhere

    return datasets.load_dataset(name, configuration, split=split, revision=revision, streaming=streaming)
