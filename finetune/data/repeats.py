"""Group texts that repeat each other, and drop those that are repeated, contradicted, or on another side too."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

import numpy as np

Duplicates = Literal["drop", "keep"]
Contradictions = Literal["drop", "majority", "keep"]


def groups(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Return the number of each text's group, given its keys: texts that share a key are one.

    Two texts are one as well if a third is one with both.
    """
    from scipy.sparse import coo_array  # takes a while
    from scipy.sparse.csgraph import connected_components

    numbers: dict[Hashable, int] = {}
    nodes = [[numbers.setdefault(key, len(numbers)) for key in own] for own in keys]
    places = np.repeat(np.arange(len(keys)), [*map(len, nodes)])
    size = len(keys) + len(numbers)
    columns = len(keys) + np.array([node for own in nodes for node in own], np.int64)
    graph = coo_array((np.ones(len(places)), (places, columns)), shape=(size, size))
    found: list[int] = connected_components(graph, directed=False)[1][: len(keys)].tolist()
    return found


def agreeing(
    groups: Sequence[int], labels: Sequence[Hashable], counts: Counter[str], contradictions: Contradictions = "drop"
) -> list[int]:
    """Return the places of the texts whose label is that of their group, and count the others.

    A group of several labels has none, or, by majority, the most frequent one if it is unique, or keeps all of them.
    """
    if contradictions == "keep":
        return list(range(len(labels)))
    given: dict[int, Counter[Hashable]] = {}
    for group, label in zip(groups, labels, strict=True):
        given.setdefault(group, Counter())[label] += 1
    right: dict[int, Hashable] = {}
    for group, found in given.items():
        (label, count), *others = found.most_common()
        if not others or (contradictions == "majority" and others[0][1] < count):
            right[group] = label
    kept = [
        place
        for place, (group, label) in enumerate(zip(groups, labels, strict=True))
        if group in right and right[group] == label
    ]
    counts += Counter({"texts with contradicting labels": len(labels) - len(kept)})
    return kept


def first_of_each(groups: Sequence[int], places: Sequence[int], counts: Counter[str]) -> list[int]:
    """Return the first of the places in each group, and count the others."""
    firsts: dict[int, int] = {}
    for place in places:
        firsts.setdefault(groups[place], place)
    counts += Counter({"duplicated texts": len(places) - len(firsts)})
    return list(firsts.values())


def apart_from(
    others: Iterable[int], groups: Sequence[int], places: Sequence[int], counts: Counter[str], reason: str
) -> list[int]:
    """Return the places whose group is not among `others`, and count the rest under `reason`."""
    known = set(others)
    kept = [place for place in places if groups[place] not in known]
    counts += Counter({reason: len(places) - len(kept)})
    return kept
