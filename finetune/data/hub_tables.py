"""Read tables of labelled texts from the Hugging Face hub."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs import UserError
from finetune.data.tables import as_text, check_columns

if TYPE_CHECKING:
    import pandas


def commit(name: str, revision: str | None) -> str | None:
    """Return the commit that `revision` of a data set of the Hugging Face hub now is; itself where working offline.

    Raises:
        UserError: no network, no such data set or revision.

    """
    import huggingface_hub

    if huggingface_hub.is_offline_mode():
        return revision
    try:
        sha: str | None = huggingface_hub.HfApi().dataset_info(name, revision=revision).sha
    except Exception as error:  # it lets through the errors of every library below it
        raise _unreadable(name, error) from None
    return sha


def read_hub(
    name: str, configuration: str | None, split: str, revision: str | None, columns: Sequence[str]
) -> "pandas.DataFrame":
    """Return a split of a data set of the Hugging Face hub as `read` returns a file; classes by name where it has them.

    With HF_HUB_OFFLINE=1 in the environment, what was fetched before is used.

    Raises:
        UserError: no network, no such data set, configuration or split, or not all of `columns`.

    """
    import datasets  # takes a second, and most tables are files

    try:
        table = datasets.load_dataset(name, configuration, split=split, revision=revision)
    except Exception as error:  # it lets through the errors of every library below it
        raise _unreadable(name, error) from None
    where = f"the hub's {name}, split {split}"
    check_columns(columns, table.column_names, where)
    frame = table.select_columns(list(columns)).to_pandas()
    for column in columns:
        feature = table.features[column]
        if isinstance(feature, datasets.ClassLabel):  # -1 stands for a label that is not given
            names = dict(enumerate(feature.names))
            frame[column] = [names.get(number, "") for number in frame[column]]
    return as_text(frame, columns, where)


def _unreadable(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        f"cannot read {name} from the Hugging Face hub ({reason}): check the name and the network, "
        "or name files in data.train"
    )
