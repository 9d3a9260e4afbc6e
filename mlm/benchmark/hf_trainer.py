"""The standard recipe of the transformers library, run by its Trainer with the settings of its users."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.vocabulary import SPECIAL_TOKENS

if TYPE_CHECKING:
    import datasets
    from torch import nn
    from transformers import PreTrainedTokenizerFast, Trainer

    from tokenizer.shards.format import ShardArrays

Collate = Callable[[list[Any]], dict[str, Any]]

STEPS_AT_MOST = 1_000_000


def sentences(split: "ShardArrays", longest: int) -> list[NDArray[np.int64]]:
    """Return each sentence as a row, truncated to `longest` tokens."""
    starts, tokens = split.sentences.tolist(), np.asarray(split.tokens, np.int64)
    return [tokens[start : min(end, start + longest)] for start, end in pairwise(starts)]


def chunks(split: "ShardArrays", length: int) -> list[NDArray[np.int64]]:
    """Return the concatenated text in rows of `length` tokens, without the rest, as group_texts in run_mlm.py."""
    whole = len(split.tokens) // length
    return list(np.asarray(split.tokens[: whole * length], np.int64).reshape(whole, length))


def examples(rows: Iterable[NDArray[np.int64]]) -> "list[dict[str, list[int]]]":
    """Return rows in the form that run_mlm.py gives to the collator."""
    return [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row), "special_tokens_mask": [0] * len(row)}
        for row in rows
    ]


def open_tokenizer(path: Path) -> "PreTrainedTokenizerFast":
    """Open a tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(names, SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **special)  # type: ignore[no-untyped-call]


def collator(tokenizer_path: Path) -> Collate:
    """Return a function that pads rows to the longest of the batch and masks 15 % of their tokens."""
    from transformers import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(open_tokenizer(tokenizer_path))


def tokens(batch: Mapping[str, Any]) -> int:
    """Return the number of tokens of a batch that are not padding."""
    return int(batch["attention_mask"].sum())


def trainer(
    model: "nn.Module",
    collate: Collate,
    rows: "datasets.Dataset | None" = None,
    after_step: Callable[[int], bool] = lambda total: False,
    counted: Callable[[Mapping[str, Any]], int] = tokens,
    **settings: Any,
) -> "Trainer":
    """Return a Trainer that reports and saves nothing; `settings` replace the defaults of TrainingArguments.

    It trains until `after_step`, called with the sum of `counted` over the batches trained so far, returns true.
    """
    import torch
    import transformers

    total = 0

    def count(module: "nn.Module", inputs: tuple[object, ...], batch: Mapping[str, Any]) -> None:
        nonlocal total
        total += counted(batch) if module.training else 0

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
            if after_step(total):  # Never set to False: the Trainer may have set it.
                control.should_training_stop = True

    # Counted in the forward pass, because the Trainer fetches batches before it needs them.
    model.register_forward_pre_hook(count, with_kwargs=True)
    transformers.logging.set_verbosity(logging.ERROR)
    silent: dict[str, Any] = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    silent |= {"output_dir": tempfile.gettempdir(), "use_cpu": not torch.cuda.is_available()}
    arguments = transformers.TrainingArguments(**(silent | {"max_steps": STEPS_AT_MOST} | settings))
    made = transformers.Trainer(model, arguments, collate, rows, callbacks=[Stop()])
    made.remove_callback(transformers.PrinterCallback)
    return made


def map_text(text: Path, tokenizer_path: Path, folder: Path) -> tuple[float, int]:
    """Tokenize the lines of `text` by datasets.map in this process; return the seconds, and the bytes of workers: 0."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = open_tokenizer(tokenizer_path)
    lines = datasets.Dataset.from_text(str(text), cache_dir=str(folder))
    began = time.perf_counter()
    lines.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
    return time.perf_counter() - began, 0
