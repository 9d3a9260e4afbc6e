"""The kinds of tokenizer.json, of any maker: which can be used here, and how each reads special tokens in a text.

Three kinds are known: WordPiece (BERT, ELECTRA, DistilBERT, MiniLM), byte-level byte-pair encoding (RoBERTa,
ModernBERT, our own), and Unigram (XLM-R, CamemBERT).
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from tokenizer.special_tokens import SpecialTokens

_MODELS = ("BPE", "WordPiece", "Unigram")
_PROBE = "a cat"
_STRANGE = "\u16ab\ue000\U00020bb7"
"""Characters that few vocabularies have: a rune, one without a meaning, and a rare Chinese one."""
PREFIX_SPACE = pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False)
"""Puts a space before a text that begins with none, but for one that begins with an added token."""


def fault(tokenizer: Tokenizer) -> str | None:
    """Return why a tokenizer cannot be used; None if it can. Raise a UserError for a fault of its special tokens."""
    model, size = type(tokenizer.model).__name__, tokenizer.get_vocab_size()
    if model not in _MODELS:
        return f"its model is {model}, not {', '.join(_MODELS[:-1])} or {_MODELS[-1]}"
    if getattr(tokenizer.model, "dropout", None) or getattr(tokenizer.model, "alpha", None):
        return f"its {model} model cuts words at random: set its dropout, or alpha, to null"
    if max(tokenizer.get_vocab().values(), default=-1) != size - 1:
        return f"its {size:,} tokens do not have the ids 0 to {size - 1:,}"
    try:
        tokenizer.encode(_STRANGE)
    except Exception as error:  # the library raises nothing more specific
        return f"it has no token for unknown characters ({error})"
    lacking = set(pre_tokenizers.ByteLevel.alphabet()) - tokenizer.get_vocab().keys()
    if model == "BPE" and tokenizer.model.unk_token is None:
        if is_byte_level(tokenizer) and lacking:
            return f"it lacks the tokens of {len(lacking)} bytes"
        if not is_byte_level(tokenizer) and not tokenizer.model.byte_fallback:
            return "it drops unknown characters: it has neither a token for them nor bytes"
    if tokenizer.decoder is None:
        return "it has no decoder, which turns tokens into text"
    unknown = SpecialTokens.of(tokenizer).unknown
    ids = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    decoded = tokenizer.decode(ids)
    if unknown not in ids and decoded.lower().split() != _PROBE.split():
        return f"its decoder turns the tokens of {_PROBE!r} into {decoded!r}"
    return None


def plain_reader(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that takes the names of special tokens in a text for plain characters."""
    reader = Tokenizer.from_str(tokenizer.to_str())
    reader.encode_special_tokens = True
    special = SpecialTokens.of(reader)
    names = [str(reader.id_to_token(number)) for number in special.ids]
    if special.found_in(reader.encode(" ".join(names), add_special_tokens=False).ids):
        cut_names(reader, names)
    return reader


@lru_cache(maxsize=4)  # a copy takes as long as encoding hundreds of texts
def without_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, or if it has `PREFIX_SPACE` a copy without it, for the parts inside of a text."""
    found = steps(tokenizer)
    if found[:1] != [json.loads(PREFIX_SPACE.__getstate__())]:
        return tokenizer
    settings = json.loads(tokenizer.to_str())
    settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": found[1:]}
    copy = Tokenizer.from_str(json.dumps(settings))
    copy.encode_special_tokens = tokenizer.encode_special_tokens
    return copy


def cut_names(reader: Tokenizer, names: Sequence[str]) -> None:
    """Let a Unigram model, which takes any entry of its vocabulary for text, see no name of a special token whole."""
    before = [] if reader.pre_tokenizer is None else [reader.pre_tokenizer]
    begins = pre_tokenizers.Split(Regex(beginnings(names)), "isolated")
    reader.pre_tokenizer = pre_tokenizers.Sequence([*before, begins])


def beginnings(names: Sequence[str]) -> str:
    """Return a pattern of the first character of each of the names in a text."""
    return "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names)


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Return True if each character of a token stands for a byte."""
    return any(step["type"] == "ByteLevel" for step in steps(tokenizer))


def steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the settings of each step of the tokenizer's pre-tokenizer, in order."""
    if tokenizer.pre_tokenizer is None:
        return []
    return list(_flat(json.loads(tokenizer.pre_tokenizer.__getstate__())))


def _flat(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if settings["type"] != "Sequence":
        yield settings
        return
    for part in settings["pretokenizers"]:
        yield from _flat(part)
