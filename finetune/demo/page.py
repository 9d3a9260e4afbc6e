"""The page in one HTML file, which asks nothing of any other site: served with a model behind it, or exported."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

from finetune.demo import answers
from finetune.demo.answers import Answer
from finetune.demo.models import Classifier, LanguageModel
from mlm.distributed.world import World

FILL_MASK, CLASSIFY = "fill_mask", "classify"
"""Kinds of pages."""


def content(model: LanguageModel | Classifier, name: str, examples: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return all that the page of a model shows before it asks; an example has as many texts as the model reads."""
    return {
        "kind": FILL_MASK if isinstance(model, LanguageModel) else CLASSIFY,
        "name": name,
        "columns": columns_of(model),
        "most_characters": answers.MOST_CHARACTERS,
        "examples": examples,
    }


def columns_of(model: LanguageModel | Classifier) -> tuple[str, ...]:
    """Return the names of the texts that a model reads at once."""
    return ("sentence",) if isinstance(model, LanguageModel) else model.reader.columns


def answered(model: LanguageModel | Classifier, examples: Sequence[Sequence[str]], world: World) -> list[Answer]:
    """Return the answers that an exported page shows, by example.

    Of a language model there is one for each word that may be hidden, beside those that the example hides, and first
    one without.
    """
    if not isinstance(model, LanguageModel):
        return [{"": answers.classify(model, texts, world)} for texts in examples]
    found: list[Mapping[str, Any]] = []
    for (text,) in examples:
        plain = answers.fill_mask(model, text, [])
        others = [index for index, word in enumerate(plain["words"]) if not word["typed"]]
        found.append({"": plain} | {str(index): answers.fill_mask(model, text, [index]) for index in others})
    return found


def page(content: Mapping[str, Any]) -> str:
    """Return the HTML of a page; its policy forbids the browser everything but this style, this script and its server.

    The page is exported if the content has `answers`; else it asks the server that it came from.
    """
    folder = resources.files(__package__)
    style, script, frame = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
    own = "" if "answers" in content else "; connect-src 'self'"
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}{own}"
    # Inside of <script> only "<" can end the data, and JSON knows it by its number.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    title = html.escape(f"{content['name']}: try the model")
    return Template(frame).substitute(policy=policy, title=title, style=style, script=script, data=data)


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
