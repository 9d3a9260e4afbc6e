from collections import Counter

from mlm.evaluation.pairs import grammar
from mlm.evaluation.pairs.reading import read_pairs


def test_who_only_counts_words_is_at_half() -> None:
    """In each paradigm, the good sentences have the same words as the bad ones, equally often."""
    pairs = grammar.pairs()
    for paradigm in {pair.paradigm for pair in pairs}:
        own = [pair for pair in pairs if pair.paradigm == paradigm]
        good, bad = (
            Counter(" ".join(texts).lower().replace(".", "").split())
            for texts in zip(*((p.good, p.bad) for p in own), strict=True)
        )
        assert good == bad, paradigm


def test_pairs_differ_and_are_a_few_hundred_of_ten_paradigms() -> None:
    pairs = read_pairs([])
    assert 300 < len(pairs) < 500
    assert len(set(pairs)) == len(pairs)
    assert all(pair.good != pair.bad and "[" not in pair.good + pair.bad for pair in pairs)
    assert all(pair.good.split(" ")[-1].endswith(".") and "  " not in pair.good + pair.bad for pair in pairs)
    counts = Counter(pair.paradigm for pair in pairs)
    assert len(counts) == 10
    assert min(counts.values()) >= 32
    assert {(pair.good, pair.bad) for pair in pairs} >= {
        ("The dogs sleep now.", "The dogs sleeps now."),
        ("The man saw himself.", "The man saw herself."),
        ("They saw an apple.", "They saw a apple."),
    }
