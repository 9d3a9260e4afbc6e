"""The texts of an exported classifier: their preparation in words and as data, their tokenizer, rows to compare on."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field
from tokenizers import Tokenizer, processors
from torch import Tensor

from configs import Config, Texts, UserError
from finetune.data.cleaning import Cleaning
from finetune.data.labelled import Labelled
from finetune.encoders.published import PublishedEncoder
from finetune.encoders.run import RunEncoder
from finetune.saved_model import SavedModel
from mlm.interop.comparison import SENTENCES
from mlm.interop.export import write_tokenizer as write_tokenizer_of_run
from tokenizer.special_tokens import SpecialTokens

TOKENIZER = "tokenizer.json"
ROWS = 24
"""Number of rows of the run's data that are compared."""

Probabilities = Callable[[Sequence[tuple[str, ...]]], Tensor]
"""A function from cleaned texts, or pairs, to the probabilities of the classes, (B, C)."""


class TextPreparation(Config):
    """The preparation of texts before they are classified, as the configuration of an exported folder holds it."""

    columns: Texts = Field(("text",), min_length=1, max_length=2)
    """Columns of a table with the text, or the two texts of a pair."""
    cleaning: Cleaning = Cleaning()
    """The changes of a text."""


def write_tokenizer(model: SavedModel, folder: Path) -> None:
    """Write the tokenizer into `folder`, set to truncate and to pad as the classifier's own."""
    encoder, most = model.classifier.encoder, model.longest
    if isinstance(encoder, PublishedEncoder):
        if not encoder.tokenizer.is_fast:
            raise UserError(
                f"the encoder's tokenizer is written in Python and has no {TOKENIZER}: take another encoder"
            )
        theirs = copy.deepcopy(encoder.tokenizer)
        theirs.model_max_length = most
        theirs.padding_side = theirs.truncation_side = "right"
        types = ["token_type_ids"] if encoder.takes_types else []
        theirs.init_kwargs["model_input_names"] = theirs.model_input_names = ["input_ids", *types, "attention_mask"]
        theirs.save_pretrained(str(folder))
    else:
        assert isinstance(encoder, RunEncoder)
        write_tokenizer_of_run(folder, encoder.tokenizer, most)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    if isinstance(encoder, RunEncoder) and encoder.cls_id is None:
        between = [str(tokenizer.id_to_token(number)) for number in SpecialTokens.of(tokenizer).between]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A",
            pair=" ".join(["$A", *between, "$B:1"]),
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in set(between)],
        )
    tokenizer.enable_truncation(most)
    tokenizer.enable_padding(pad_id=encoder.pad_id, pad_token=tokenizer.id_to_token(encoder.pad_id))
    tokenizer.save(str(folder / TOKENIZER))


def preparation(model: SavedModel) -> Iterator[str]:
    """Yield a sentence for each change of a text that neither the tokenizer nor the network makes."""
    cleaning, columns = model.reader.cleaning, model.reader.columns
    if cleaning.html_entities:
        yield "HTML entities such as &amp; are decoded."
    for what, treatment, name in (
        ("Web addresses", cleaning.urls, "URL"),
        ("Names such as @someone", cleaning.mentions, "@user"),
    ):
        if treatment != "keep":
            yield f"{what} are {f'replaced by {name}' if treatment == 'replace' else 'removed'}."
    if cleaning.hashtags == "split":
        yield "Hashtags are split into words: #ForestFire becomes Forest Fire."
    if cleaning.longest_repeat is not None:
        yield f"A letter or sign is repeated {cleaning.longest_repeat} times at most."
    if cleaning.lower_case:
        yield "All letters are lower case."
    yield "White space is one space between words, and none at the ends."
    if cleaning.prefix:
        before = " and ".join(cleaning.prefix)
        yield f"The cleaned, percent-decoded {before} and ': ' come before the text, where they are not empty."
    if len(columns) > 1:
        yield f"A pair is given as two texts: {' and '.join(columns)}."


def as_data(model: SavedModel) -> dict[str, Any]:
    """Return all that another program needs to prepare a text and to name the classes."""
    reader = model.reader
    return {
        "classes": model.class_names,
        "columns": reader.columns,
        "prefix": reader.cleaning.prefix,
        "html_entities": reader.cleaning.html_entities,
        "substitutions": reader.cleaning.substitutions(),
        "lower_case": reader.cleaning.lower_case,
        "longest": model.longest,
        "tokenizer": TOKENIZER,
    }


def rows_to_compare(model: SavedModel) -> tuple[list[Mapping[str, str]], bool]:
    """Return rows of texts, very short and truncated ones too, and whether some are of the run's data."""
    reader, data = model.reader, model.config.data
    own = [dict.fromkeys(reader.columns, text) for text in (*SENTENCES, "a")]
    if len(reader.columns) == 1:
        own.append({reader.columns[0]: " ".join(SENTENCES * (model.longest // 50 + 1))})
    found: list[dict[str, str]] = []
    if isinstance(data, Labelled) and data.train is not None and Path(data.train).is_file():
        found = list(islice((row for row in reader.rows(Path(data.train)) if all(reader.texts(row))), ROWS))
    return [*own, *found], bool(found)
