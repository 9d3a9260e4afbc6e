"""Data sets of the Hugging Face hub: the one place that asks it for data.

A missing network, data set, configuration, split or revision is an UnreachableError. With HF_HUB_OFFLINE=1 in the
environment nothing is fetched, and `read_split` uses what was fetched before.
"""

import functools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from tokenizer.sources.files import UnreachableError
from tokenizer.sources.readers import text_rows
from tokenizer.sources.tables import Row, check_columns


@functools.cache
def commit(name: str, revision: str | None) -> str:
    """Return the commit that `revision` of a data set stands for now, None for its newest; asked once a process."""
    import huggingface_hub

    try:
        return str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:  # it lets through the errors of the HTTP library below it
        raise UnreachableError(failure(name, error)) from error


def commit_unless_offline(name: str, revision: str | None) -> str | None:
    """Return the commit that `revision` stands for now, as `commit` does; offline, `revision` itself."""
    import huggingface_hub

    return revision if huggingface_hub.is_offline_mode() else commit(name, revision)


def configurations(name: str) -> list[str]:
    """Return the names of a data set's configurations."""
    import datasets

    try:
        return list(datasets.get_dataset_config_names(name))
    except Exception as error:  # it lets through the errors of every library below it
        raise UnreachableError(failure(name, error)) from error


def stream(name: str, configuration: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """Yield the rows of a data set's split while they are fetched; a failure after the first is a ConnectionError."""
    fault: type[ValueError | OSError] = UnreachableError
    try:
        import datasets  # takes a second, and most text comes from elsewhere

        rows = datasets.load_dataset(name, configuration, split=split, revision=revision, streaming=True)
        for number, row in enumerate(rows, start=1):
            fault = ConnectionError
            yield Row(f"the hub's {name}, row {number}", row)
    except Exception as error:  # it lets through the errors of every library below it
        raise fault(failure(name, error)) from error


def read_split(
    name: str, configuration: str | None, split: str, revision: str | None, columns: Sequence[str], mend_columns: str
) -> list[dict[str, str]]:
    """Return the rows of a data set's split, fetched once: each value as text, a missing one as the empty text.

    Only `columns` are read; one of classes gives their names, and -1, a label not given, is missing. `mend_columns`
    says where to name the right column.
    """
    table = _table(name, configuration, split, revision)
    where = f"the hub's {name}, split {split}"
    check_columns(columns, table.column_names, where, mend_columns)
    table = table.select_columns(list(columns))
    classes = {column: dict(enumerate(names)) for column in columns if (names := _classes(table, column))}
    rows = []
    for number, row in enumerate(table, start=1):
        named = {column: names.get(row[column], "") for column, names in classes.items()}
        rows.append(Row(f"{where}, row {number}", {**row, **named}))
    return text_rows(rows, columns, where, mend_columns)


def class_names(name: str, configuration: str | None, split: str, revision: str | None, column: str) -> tuple[str, ...]:
    """Return the classes of a column in the data set's order, which F1 depends on; () if it has none."""
    return _classes(_table(name, configuration, split, revision), column)


@lru_cache(maxsize=4)  # the splits of a task, whose names of classes are asked for after their rows
def _table(name: str, configuration: str | None, split: str, revision: str | None) -> Any:
    """Return a data set's split, fetched once."""
    from datasets import load_dataset

    try:
        return load_dataset(name, configuration, split=split, revision=revision)
    except Exception as error:  # it lets through the errors of every library below it
        raise UnreachableError(failure(name, error)) from error


def _classes(table: Any, column: str) -> tuple[str, ...]:
    from datasets import ClassLabel

    kind = table.features[column]
    return tuple(kind.names) if isinstance(kind, ClassLabel) else ()


def failure(name: str, error: Exception) -> str:
    """Return one line on a failure to read `name` from the hub: the reason, and how to mend it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    mend = "check the name and the network, or name a local copy"
    return f"cannot read {name} from the Hugging Face hub ({reason}): {mend}"
