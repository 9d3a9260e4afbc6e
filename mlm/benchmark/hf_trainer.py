"""The standard recipe of the transformers library, run by its Trainer with the settings of its users."""

import importlib.util
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from configs import UserError
from mlm.benchmark.measure import in_fresh_process
from tokenizer.vocabulary import SPECIAL_TOKENS

if TYPE_CHECKING:
    import datasets
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from tokenizer.shards.format import ShardArrays

T = TypeVar("T")
Collate = Callable[[list[Any]], dict[str, Any]]

PACKAGES = ("transformers", "accelerate")
STEPS_AT_MOST = 1_000_000


def as_users_run_it(function: Callable[..., T], *arguments: object) -> T:
    """Call `function` in a new process, with the default settings of the C library and of OpenMP."""
    name = "GOMP_SPINCOUNT"  # libgomp reads it when torch is imported, in this process long ago.
    ours = os.environ.get(name)
    os.environ[name] = "300000"  # libgomp's default
    try:
        return in_fresh_process(function, *arguments)[0]
    finally:
        del os.environ[name]
        if ours is not None:
            os.environ[name] = ours


def check_installed() -> None:
    """Raise a UserError if a library of the reference is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the benchmark needs {', '.join(missing)}: pip install -e '.[bench]'")


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


def dataset(rows: Iterable[NDArray[np.int64]]) -> "datasets.Dataset":
    """Return rows in the form that run_mlm.py gives to the Trainer."""
    import datasets

    return datasets.Dataset.from_list(examples(rows))


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


def train(
    model: "nn.Module",
    rows: "datasets.Dataset",
    collate: Collate,
    batch_rows: int,
    *,
    bfloat16: bool,
    after_step: Callable[[int], bool],
    **settings: object,
) -> None:
    """Train by the Trainer's loop until `after_step`, called with the tokens read so far, returns true.

    Padding does not count as read. `settings` replace the defaults of TrainingArguments.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity(logging.ERROR)

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
            if after_step(int(state.num_input_tokens_seen)):  # Never set to False: the Trainer may have set it.
                control.should_training_stop = True

    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {"max_steps": STEPS_AT_MOST} | settings
        training = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_rows,
            bf16=bfloat16,
            use_cpu=not torch.cuda.is_available(),
            include_num_input_tokens_seen="non_padding",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **arguments,
        )
        trainer = transformers.Trainer(model, training, collate, rows, callbacks=[Stop()])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def map_text(text: Path, tokenizer_path: Path, folder: Path) -> float:
    """Tokenise the lines of `text` by datasets.map in this process; return the seconds of the mapping."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = open_tokenizer(tokenizer_path)
    lines = datasets.Dataset.from_text(str(text), cache_dir=str(folder))
    began = time.perf_counter()
    lines.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
    return time.perf_counter() - began
