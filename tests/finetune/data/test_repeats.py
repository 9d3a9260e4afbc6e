from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import repeats


@given(st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=3), min_size=1, max_size=12))
def test_groups_are_the_texts_that_keys_link_directly_or_through_others(keys: list[set[int]]) -> None:
    linked = np.array([[bool(one & other) for other in keys] for one in keys])
    for _ in keys:  # the transitive closure
        linked = linked @ linked
    found = np.array(repeats.groups(keys))
    np.testing.assert_array_equal(found[:, None] == found[None], linked)
    firsts = [found.tolist().index(number) for number in dict.fromkeys(found.tolist())]
    assert found[firsts].tolist() == sorted(found[firsts].tolist())  # numbered in the order of the texts


def test_contradictions_and_repetitions_are_dropped_and_counted() -> None:
    groups, labels, counts = [0, 0, 1, 1, 1, 2, 3, 3], list("aabbabaa"), Counter[str]()
    assert repeats.agreeing(groups, labels, counts) == [0, 1, 5, 6, 7]
    assert repeats.agreeing(groups, labels, counts, "majority") == [0, 1, 2, 3, 5, 6, 7]
    assert repeats.agreeing([0, 0], ["a", "b"], counts, "majority") == []
    assert repeats.first_of_each(groups, [0, 1, 5, 6, 7], counts) == [0, 5, 6]
    assert repeats.apart_from([3, 9], groups, [0, 5, 6], counts, "both") == [0, 5]
    assert counts == {"texts with contradicting labels": 3 + 1 + 2, "duplicated texts": 2, "both": 1}
