"""Minimal pairs that a small grammar of English writes, for where no file of pairs is given.

The good sentences of a paradigm have the same words, equally often, as the bad ones: counting words is at 50 %.
"""

import itertools
import re
from collections.abc import Iterable, Sequence

from mlm.evaluation.pairs.pair import Pair

MOST = 24
"""Groups of sentences of a paradigm, evenly from all combinations of words; a group has two pairs."""
_NOUNS = (("dog", "dogs"), ("teacher", "teachers"), ("king", "kings"), ("friend", "friends"), ("doctor", "doctors"))
_VERBS = (("sleeps", "sleep"), ("waits", "wait"), ("sings", "sing"), ("works", "work"))
_PAST = ("saw", "knew", "helped", "found")
_ADJECTIVES = ("old", "young", "good", "great")
_PREPOSITIONS = ("near", "behind", "with")
_WHEN = ("now", "here", "every day")
_DETERMINERS = (("this", "these"), ("that", "those"))
_PEOPLE = (
    ("man", "men", "woman"),
    ("king", "kings", "queen"),
    ("father", "fathers", "mother"),
    ("son", "sons", "girl"),
)
_AUXILIARIES = ("will", "can", "must")
_ARTICLES = (("apple", "dog"), ("old man", "young man"), ("hour", "house"), ("end", "book"), ("eye", "hand"))
_CHOICE = re.compile(r"\[(.*?)\|(.*?)\]")


def pairs() -> list[Pair]:
    """Return the pairs of all paradigms."""
    return [
        Pair(_CHOICE.sub(r"\1", sentence) + ".", _CHOICE.sub(r"\2", sentence) + ".", paradigm, field)
        for (field, paradigm), groups in _paradigms().items()
        for group in _evenly(list(groups))
        for sentence in group
    ]


def _evenly(groups: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    count = min(len(groups), MOST)
    return [groups[number * len(groups) // count] for number in range(count)]


def _paradigms() -> dict[tuple[str, str], Iterable[Sequence[str]]]:
    """Return groups of sentences in which [good|bad] are what a good one has there, and a bad one."""
    product, two = itertools.product, list(itertools.permutations(_NOUNS, 2))
    return {
        ("agreement", "subject and verb"): (
            [f"The {noun} [{verb}|{wrong}] {when}" for noun, verb, wrong in ((one, s, p), (many, p, s))]
            for (one, many), (s, p), when in product(_NOUNS, _VERBS, _WHEN)
        ),
        ("agreement", "subject and distant verb"): (
            [f"The {one} {place} the {others} [{s}|{p}]", f"The {many} {place} the {other} [{p}|{s}]"]
            for ((one, many), (other, others)), (s, p), place in product(two, _VERBS, _PREPOSITIONS)
        ),
        ("agreement", "determiner and noun"): (
            [f"They {saw} [{this}|{these}] {one}", f"They {saw} [{these}|{this}] {many}"]
            for saw, (one, many), (this, these) in product(_PAST, _NOUNS, _DETERMINERS)
        ),
        ("reflexives", "gender"): (
            [f"The {man} {saw} [himself|herself]", f"The {woman} {saw} [herself|himself]"]
            for (man, _, woman), saw in product(_PEOPLE, _PAST)
        ),
        ("reflexives", "number"): (
            [f"The {man} {saw} [himself|themselves]", f"The {men} {saw} [themselves|himself]"]
            for (man, men, _), saw in product(_PEOPLE, _PAST)
        ),
        ("order", "verb and object"): (
            [f"The {one} [{saw} the {other}|the {other} {saw}]", f"The {many} [{saw} the {others}|the {others} {saw}]"]
            for ((one, many), (other, others)), saw in product(two, _PAST)
        ),
        ("order", "adjective and noun"): (
            [f"The [{old} {one}|{one} {old}] {s}", f"The [{old} {many}|{many} {old}] {p}"]
            for (one, many), (s, p), old in product(_NOUNS, _VERBS, _ADJECTIVES)
        ),
        ("order", "auxiliary and verb"): (
            [f"The {one} [{will} {verb}|{verb} {will}]", f"The {many} [{will} {verb}|{verb} {will}]"]
            for (one, many), (_, verb), will in product(_NOUNS, _VERBS, _AUXILIARIES)
        ),
        ("determiners", "a and an"): (
            [f"They {saw} [an|a] {apple}", f"They {saw} [a|an] {dog}"]
            for saw, (apple, dog) in product(_PAST, _ARTICLES)
        ),
        ("determiners", "every and all"): (
            [f"[Every|All] {one} {s} {when}", f"[All|Every] {many} {p} {when}"]
            for (one, many), (s, p), when in product(_NOUNS, _VERBS, _WHEN)
        ),
    }
