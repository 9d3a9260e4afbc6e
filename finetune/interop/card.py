"""Write the README.md of an exported classifier: its use, the preparation of its texts, its results."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs import UserError
from finetune.evaluation import results
from finetune.interop.texts import preparation
from finetune.saved_model import SavedModel
from mlm.interop.onnx import FILE

Format = Literal["transformers", "onnx"]
README = "README.md"
_ONNX = """
import html
import json
import re
from urllib.parse import unquote

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

rows = {rows}

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
facts = {{name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}}
tokenizer = Tokenizer.from_file(facts["tokenizer"])  # it truncates and pads
tokenizer.encode_special_tokens = True  # [SEP] in a text is plain text


def clean(text):
    if facts["html_entities"]:
        text = html.unescape(text)
    for pattern, written, spaces in facts["substitutions"]:
        text = re.sub(pattern, lambda found: re.sub(spaces, " ", found.expand(written)), text)
    return " ".join((text.lower() if facts["lower_case"] else text).split())


def prepare(row):
    first, *others = [clean(row[column]) for column in facts["columns"]]
    before = [clean(unquote(row.get(column, ""))) for column in facts["prefix"]]
    first = ": ".join([*filter(None, before), first])
    return (first, *others) if others else first


encoded = tokenizer.encode_batch([prepare(row) for row in rows])
given = {{
    "input_ids": [one.ids for one in encoded],
    "attention_mask": [one.attention_mask for one in encoded],
    "token_type_ids": [one.type_ids for one in encoded],
}}
inputs = {{one.name: np.array(given[one.name], np.int64) for one in session.get_inputs()}}
(probabilities,) = session.run(["probabilities"], inputs)
for row in probabilities:
    print(json.dumps(dict(zip(facts["classes"], row.tolist()))))
"""
_TRANSFORMERS = """
from transformers import pipeline

classify = pipeline("text-classification", ".", top_k=None)
print(classify([{texts}], truncation=True))
"""


@dataclass(frozen=True)
class Exported:
    """A folder for other programs."""

    path: Path
    differences: Mapping[Format, float]
    """The largest difference of a probability from our model's, by format."""
    texts: int
    """Number of texts that were compared."""
    of_the_run: bool
    """True if texts of the run's data are among them."""


def write(folder: Path, run: Path, model: SavedModel, exported: Exported) -> None:
    """Write the card of the model of `run` into `folder`."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        library_name="transformers" if "transformers" in exported.differences else "onnx",
        pipeline_tag="text-classification",
        tags=["text-classification", *exported.differences],
    )
    body = "\n".join([*_opening(run, model), *_use(model, exported), *_texts(model), *_facts(run, model, exported)])
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n").save(folder / README)


def _opening(run: Path, model: SavedModel) -> Iterator[str]:
    yield f"# {run.name}\n"
    what, classes = "pairs of texts" if _is_paired(model) else "texts", ", ".join(model.class_names)
    yield f"A classifier of {what} into {len(model.class_names)} classes: {classes}. It is the model of the run"
    yield f"`{run.name}`, which has a {model.config.head.kind} head.\n"


def _use(model: SavedModel, exported: Exported) -> Iterator[str]:
    yield "## Use\n\nIn this folder. The texts must be prepared as the next section says."
    if "transformers" in exported.differences:
        given = (
            '{"text": "One text.", "text_pair": "Another."}' if _is_paired(model) else '"One text.", "Another text."'
        )
        yield f"\nWith transformers and torch:\n\n```python{_TRANSFORMERS.format(texts=given)}```"
    if "onnx" in exported.differences:
        columns = model.config.data.reader.columns
        rows = [dict.fromkeys(columns, text) for text in ("One text.", "Another, longer text.")]
        yield "\nWith onnxruntime and tokenizers alone; this prepares the texts as well:\n"
        yield f"```python{_ONNX.format(rows=rows, file=FILE.as_posix())}```"


def _texts(model: SavedModel) -> Iterator[str]:
    yield "\n## Preparation of a text\n"
    yield "Neither the tokenizer nor the model does this:\n"
    yield from (f"- {sentence}" for sentence in preparation(model))
    yield f"\nA text of over {model.longest} tokens is truncated."
    if _is_paired(model):
        yield "Of a pair that is too long, the libraries may keep a token more of one text than the run did."


def _facts(run: Path, model: SavedModel, exported: Exported) -> Iterator[str]:
    yield "\n## Compared with the run\n"
    whose = "of the run's data and others" if exported.of_the_run else "of no data of the run"
    for name, difference in exported.differences.items():
        yield f"- {name}: largest difference of a probability {difference:.1e}, on {exported.texts} texts {whose}."
    if "transformers" in exported.differences:
        yield "\nThe head gives the run's scores by weights of unusual sizes: draw new ones before further training."
    try:
        table = results.table(results.read(run))
    except UserError:
        return  # a run that was stopped after a trial has a model and no results
    yield f"\n## Results of the run\n\n```\n{table}\n```"


def _is_paired(model: SavedModel) -> bool:
    return len(model.config.data.reader.columns) > 1
