"""Answers of a model as JSON, which `page.js` draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from configs import UserError, check_text
from finetune.data.augment import MASKED
from finetune.demo.models import Attentive, Classifier, LanguageModel
from finetune.demo.words import TYPED_MASK, Reading, Word, between_units, split
from mlm.distributed.world import World
from tokenizer.sentences import collapse

Answer = Mapping[str, Any]

MOST_CHARACTERS = 500
"""Characters of a text, white space collapsed."""
MOST_WEIGHTS = 2_000_000
"""Attention weights of an answer, over all layers and heads."""
TOP = 8
"""Candidates for each hidden word."""


def fill_mask(model: LanguageModel, text: str, hidden: Sequence[int]) -> Answer:
    """Return the words of a text, candidates for the hidden ones, and the attention.

    `hidden` are indices of words; each [MASK] in the text is hidden, too. A UserError if the text is empty or too long.
    """
    text = _checked(text.replace(model.mask, TYPED_MASK))
    words = split(text)
    typed = {index for index, word in enumerate(words) if word.text == TYPED_MASK}
    masked = sorted(typed | {index for index in hidden if 0 <= index < len(words)})
    read = model.read([text], masked)
    if len(read.ids) > model.longest:
        raise UserError(f"the text has {len(read.ids)} tokens, over the model's {model.longest}: shorten it")
    shown = [
        {**_shown(word, words[index - 1] if index else None), "hidden": index in masked, "typed": index in typed}
        for index, word in enumerate(words)
    ]
    for index, guesses in zip(masked, model.guess(read, TOP) if masked else (), strict=True):
        shown[index]["guesses"] = [
            {"name": guess.token.strip() or repr(guess.token), "probability": round(guess.probability, 4)}
            for guess in guesses
        ]
    return {"words": shown, "attention": _attention(model, read)}


def classify(model: Classifier, texts: Sequence[str], world: World) -> Answer:
    """Return the classes of a text or pair, most probable first, what each word contributed, and the attention.

    A word's contribution is its occlusion: the probability of the predicted class, less that of the text without the
    word; None if nothing is left of the text. A UserError if a text is empty or too long.
    """
    columns = model.reader.columns
    if len(texts) != len(columns):
        raise UserError(f"{len(texts)} texts, but the model reads {len(columns)}: {', '.join(columns)}")
    texts = [_checked(text) for text in texts]
    words = [(part, word) for part, text in enumerate(texts) for word in split(text)]
    rows = [dict(zip(columns, texts, strict=True))]
    rows += [{**rows[0], columns[part]: _without(texts[part], word)} for part, word in words]
    whole, *without = model.classify(rows, world)
    if not whole.probabilities:
        raise UserError("cleaned as in training, the text is empty: type another")
    best = max(range(len(whole.probabilities)), key=whole.probabilities.__getitem__)
    shown, before = list[dict[str, Any]](), dict[int, Word]()
    for (part, word), left in zip(words, without, strict=True):
        contribution = round(whole.probabilities[best] - left.probabilities[best], 4) if left.probabilities else None
        shown.append({**_shown(word, before.get(part)), "part": part, "contribution": contribution})
        before[part] = word
    ranked = sorted(zip(whole.probabilities, model.class_names, strict=True), key=lambda pair: -pair[0])
    read = model.read(model.reader.texts(rows[0]))
    return {
        "classes": [{"name": name, "probability": round(probability, 4)} for probability, name in ranked],
        "words": shown,
        "truncated": whole.truncated,
        "attention": None if whole.truncated else _attention(model, read),
    }


def _checked(text: str) -> str:
    """Return a text with single spaces; a UserError if it is empty, too long, or no UTF-8."""
    check_text(text[:MOST_CHARACTERS], "text", mend="give it in UTF-8")
    text = collapse(text.replace(MASKED, ""))
    if not text:
        raise UserError("there is no text: type a sentence")
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"the text has {len(text):,} characters, over this page's {MOST_CHARACTERS}: shorten it")
    return text


def _shown(word: Word, before: Word | None) -> dict[str, Any]:
    return {"text": word.text, "space": before is not None and before.end < word.start}


def _without(text: str, word: Word) -> str:
    return collapse(text[: word.start] + text[word.end :])


def _attention(model: Attentive, read: Reading) -> Answer | None:
    """Return the weights between words in percent, of each layer, head, query and key; None if they are too many."""
    layers = model.weights(read)
    if sum(len(weights_HLL) for weights_HLL in layers) * len(read.labels) ** 2 > MOST_WEIGHTS:
        return None
    percent = [(100 * between_units(weights_HLL, read.units)).round().to(torch.int32) for weights_HLL in layers]
    return {"labels": read.labels, "weights": [layer_HUU.tolist() for layer_HUU in percent]}
