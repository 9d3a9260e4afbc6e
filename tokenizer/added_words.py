"""Add words of a domain to a published vocabulary, so that the tokenizer keeps them whole.

An added word is found as a whole word only: a text without it, and longer words that hold it, keep their tokens. The
result is a standard tokenizer.json, which transformers reads alike.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from unicodedata import category

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from configs import UserError, listed
from tokenizer.cached_encoder import normalize_by
from tokenizer.special_tokens import SpecialTokens

Grown = tuple[Tokenizer, list[list[int]]]
LEAST_SEEN = 3
"""A word that a text has less often is not worth a row of the embedding: it would hardly be trained."""
_LETTERS = ("L", "M")
_IN_WORDS = (*_LETTERS, "N", "Pc")
"""Beginnings of the Unicode categories of letters, and of all characters inside of words."""


def add_words(tokenizer: Tokenizer, words: Sequence[str]) -> Grown:
    """Return a copy of `tokenizer` with `words`, and for each of its new ids, in order, those of the pieces before.

    A word is read as the tokenizer reads it, such as in lower case. Byte-level BPE has two tokens for a word: with the
    space before it and without. Raise a UserError if a word is empty, holds white space, is there already or appears
    twice, or if the tokenizer cannot take it in.
    """
    read = normalize_by(tokenizer.normalizer)
    contents = [_checked(word, read(word).strip(" ")) for word in words]
    twice = [word for word, count in Counter(contents).items() if count > 1]
    if twice:
        raise UserError(
            f"words to add appear twice, as the tokenizer reads them: {listed(twice)}: leave out one of each"
        )
    add = _WAYS.get(type(tokenizer.model))
    if add is None:
        raise UserError(
            f"this tokenizer's model is {type(tokenizer.model).__name__}: a piece added to it would be found inside of"
            " longer words too, and change their tokens: take an encoder with WordPiece or byte-level BPE"
        )
    return add(tokenizer, contents)


def read_words(path: Path) -> list[str]:
    """Return the words of a file, one a line; raise a UserError for a missing or empty file, or a line of several."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"no such file of words to add: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the words to add: {path} ({getattr(error, 'strerror', None) or error})"
        ) from error
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise UserError(f"{path} holds no words to add: write one a line")
    return words


def most_cut_words(tokenizer: Tokenizer, texts: Iterable[str], count: int) -> list[str]:
    """Return the `count` words that would save the most tokens of `texts`, fewer if there are no more, best first.

    That is how often a word occurs times the number of its pieces but one; an unknown piece counts as many as the word
    has letters. A word stands between white space and punctuation, is made of letters, is one word to the tokenizer as
    well, occurs at least `LEAST_SEEN` times, and is read as the tokenizer reads it. Of words that save alike the
    first of the alphabet comes first.
    """
    read = normalize_by(tokenizer.normalizer)
    runs = Counter(run for text in texts for run in read(text).split())
    seen = Counter[str]()
    for run, times in runs.items():
        seen[_word_of(run)] += times
    often = [word for word, times in seen.items() if word and times >= LEAST_SEEN]
    encoded = tokenizer.encode_batch([f" {word}" for word in often], add_special_tokens=False)
    pieces = {word: found.ids for word, found in zip(often, encoded, strict=True) if len({*found.word_ids}) == 1}
    unknown = SpecialTokens.of(tokenizer).unknown
    cut = {word: max(len(ids), len(word) * (unknown in ids)) for word, ids in pieces.items()}
    saved = {word: seen[word] * (count - 1) for word, count in cut.items()}
    best = sorted((-tokens, word) for word, tokens in saved.items() if tokens)
    return [word for _, word in best[:count]]


def _checked(word: str, content: str) -> str:
    if not word or not content:
        raise UserError("a word to add is empty, or nothing of it is left as the tokenizer reads it: remove it")
    if any(map(str.isspace, word)) or any(map(str.isspace, content)):
        raise UserError(f"{word!r} holds white space, as the tokenizer reads it: only single words can be added")
    return content


def _add_whole_words(tokenizer: Tokenizer, words: Sequence[str]) -> Grown:
    """Add tokens that the library looks for between the borders of words, in the normalized text."""
    pieces = [encoding.ids for encoding in tokenizer.encode_batch(list(words), add_special_tokens=False)]
    _refuse_known([word for word in words if tokenizer.token_to_id(word) is not None])
    grown = _copy(tokenizer, tokenizer.to_str())
    grown.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    return grown, pieces


def _add_entries(tokenizer: Tokenizer, words: Sequence[str]) -> Grown:
    """Add both forms of each word to the vocabulary itself: an added token would take the space from the word's form.

    The model then takes an entry for a pre-token that equals it, whatever the merges.
    """
    parts, known = json.loads(tokenizer.to_str()), tokenizer.get_vocab()
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    forms = [(word, to_bytes.pre_tokenize_str(form)[0][0]) for word in words for form in (f" {word}", word)]
    _refuse_known([word for word, form in forms if form in known and form.startswith("Ġ")])
    forms = [(word, form) for word, form in forms if form not in known]
    for word, form in forms:
        if form not in [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(f"( {word}({word}")]:
            raise UserError(
                f"{word!r} is no single word to this tokenizer, which cuts it at a border of words: remove it"
            )
    pieces = [[token.id for token in tokenizer.model.tokenize(form)] for _, form in forms]
    # The ids of added tokens are counted from the size of the vocabulary, unless they are in it.
    entries = known | {form: len(known) + place for place, (_, form) in enumerate(forms)}
    parts["model"] |= {"vocab": entries, "ignore_merges": True}
    grown = _copy(tokenizer, json.dumps(parts))
    _check_entries(tokenizer, grown, known)
    return grown, pieces


def _check_entries(tokenizer: Tokenizer, grown: Tokenizer, known: Mapping[str, int]) -> None:
    """Raise a UserError if an entry that the merges do not give would now be taken for a text."""
    if tokenizer.model.ignore_merges:
        return
    changed = [entry for entry in known if _ids(tokenizer, entry) != _ids(grown, entry)]
    changed = [entry for entry in changed if _is_one_pre_token(tokenizer, entry)]
    if changed:
        raise UserError(
            f"words cannot be added to this tokenizer: its merges never give its entries {listed(changed)}, which would"
            " then be found in texts"
        )


def _ids(tokenizer: Tokenizer, entry: str) -> list[int]:
    return [token.id for token in tokenizer.model.tokenize(entry)]


def _is_one_pre_token(tokenizer: Tokenizer, entry: str) -> bool:
    texts = [before + tokenizer.decoder.decode([entry]) for before in ("", "a", "1", "(")]
    return any(entry == piece for text in texts for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))


def _refuse_known(words: Sequence[str]) -> None:
    if words:
        raise UserError(f"words to add are in the vocabulary already: {listed(words)}: remove them")


def _copy(tokenizer: Tokenizer, content: str) -> Tokenizer:
    copy = Tokenizer.from_str(content)
    copy.encode_special_tokens = tokenizer.encode_special_tokens
    return copy


def _word_of(run: str) -> str:
    """Return what is left of a run between spaces without the punctuation around it, if that is of letters; else ''."""
    groups = [(inside, "".join(group)) for inside, group in groupby(run, lambda c: category(c).startswith(_IN_WORDS))]
    inner = [group for inside, group in groups if inside]
    return inner[0] if len(inner) == 1 and all(category(c).startswith(_LETTERS) for c in inner[0]) else ""


_WAYS: dict[type, Callable[[Tokenizer, Sequence[str]], Grown]] = {
    models.WordPiece: _add_whole_words,
    models.BPE: _add_entries,
}
"""The function that adds words to each kind of model."""
