import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlm.data.batches import IGNORED, Batch
from mlm.evaluation.ngram_baselines import Bigram, Unigram, measure_baseline
from tests.mlm.samples import OURS, offsets, packed
from tokenizer.shards.format import ShardArrays
from tokenizer.vocabulary import CLS, MASK, PAD, SEP

V = 12
START = Bigram.START
SEGMENTS = [[5, 6, 7, 5, 6, 8], [5, 6, 9], [6, 7], [5, 6, 7, 10, 10], [11]]


def split_of(segments: Sequence[Sequence[int]]) -> ShardArrays:
    """Return a split whose sentences are the segments."""
    tokens = np.array([token for segment in segments for token in segment], np.uint16)
    ends = offsets([len(segment) for segment in segments])
    return ShardArrays(tokens, np.ones(len(tokens), np.uint8), ends, np.arange(len(ends)))


def built(segments: Sequence[Sequence[int]], most_tokens: int = 10**6) -> tuple[Unigram, Bigram]:
    tokens, starts = packed(split_of(segments), alone=True).sample(most_tokens)
    unigram = Unigram(tokens, V)
    return unigram, Bigram(tokens, starts, unigram, V, MASK)


def unigram_written_out(segments: Sequence[Sequence[int]]) -> list[float]:
    counts = Counter(token for segment in segments for token in segment)
    return [(counts[token] + 1) / (counts.total() + V) for token in range(V)]


def bigram_written_out(segments: Sequence[Sequence[int]], left: int) -> list[float]:
    """Chen & Goodman 1999, equations for interpolated Kneser-Ney, with one pseudo-pair shared out by the unigram."""
    unigram = unigram_written_out(segments)
    if left == MASK:
        return unigram
    pairs = Counter(pair for segment in segments for pair in zip([START, *segment], segment, strict=False))
    once, twice = (sum(count == n for count in pairs.values()) for n in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    kinds_left_of = Counter(right for _, right in pairs)
    continuation = [(kinds_left_of[token] + unigram[token]) / (len(pairs) + 1) for token in range(V)]
    right_of = {right: count for (first, right), count in pairs.items() if first == left}
    total = sum(right_of.values())
    if not total:
        return continuation
    new = discount * len(right_of) / total
    return [max(right_of.get(token, 0) - discount, 0) / total + new * continuation[token] for token in range(V)]


segments_of = st.lists(st.lists(st.integers(5, V - 1), min_size=1, max_size=8), min_size=1, max_size=8)


@given(segments_of)
def test_the_unigram_is_the_add_one_share_of_each_token(segments: list[list[int]]) -> None:
    unigram, _ = built(segments)
    assert unigram.probabilities(5).tolist() == pytest.approx(unigram_written_out(segments), rel=1e-12)


@given(segments_of)
def test_the_bigram_is_interpolated_kneser_ney(segments: list[list[int]]) -> None:
    _, bigram = built(segments)
    for left in range(START, V):
        probabilities_V = bigram.probabilities(left)
        assert probabilities_V.tolist() == pytest.approx(bigram_written_out(segments, left), rel=1e-12)
        assert probabilities_V.sum() == pytest.approx(1, rel=1e-12)
        assert probabilities_V.min() > 0


def test_a_probability_worked_by_hand() -> None:
    """Pairs: ^5 5-6 6-7 ^6 6-5 once or twice each; 5 is seen after ^ and 6, so two of five kinds."""
    _, bigram = built([[5, 6, 7], [5, 6], [6, 5]])
    # ^5:2 ^6:1 56:2 67:1 65:1, so three kinds once, two twice: the discount is 3 / (3 + 2 * 2).
    assert bigram.discount == pytest.approx(3 / 7)
    unigram = (3 + 1) / (7 + V)  # of token 5
    continuation = (2 + unigram) / (5 + 1)
    assert bigram.probabilities(START)[5] == pytest.approx((2 - 3 / 7) / 3 + 3 / 7 * 2 / 3 * continuation)
    assert bigram.probabilities(6)[5] == pytest.approx((1 - 3 / 7) / 2 + 3 / 7 * 2 / 2 * continuation)
    assert bigram.probabilities(7)[5] == pytest.approx(continuation)


@pytest.mark.parametrize("cls_sep", [False, True])
def test_a_sample_is_of_whole_segments_that_are_counted_once(cls_sep: bool) -> None:
    rows = packed(split_of(SEGMENTS * 40), alone=True, cls_sep=cls_sep)
    tokens, starts = rows.sample(200)
    found = Counter(tuple(segment.tolist()) for segment in np.split(tokens, starts)[1:])
    assert starts[0] == 0
    assert 100 < len(tokens) < 200 < sum(map(len, SEGMENTS * 40))
    assert found <= Counter(map(tuple, SEGMENTS * 40))
    everything = rows.sample(10**9)[0]
    assert sorted(everything.tolist()) == sorted(token for segment in SEGMENTS * 40 for token in segment)


def batch_of(ids: Sequence[int], positions: Sequence[int], targets: dict[int, int], row_length: int) -> Batch:
    """Return rows with the given targets by place, in as many slots a row as it has positions; most are not filled."""
    rows = len(ids) // row_length
    return Batch(
        torch.tensor(ids).view(-1, row_length),
        torch.ones(rows, row_length, dtype=torch.int32),
        torch.tensor(positions).view(-1, row_length),
        torch.arange(row_length).expand(rows, row_length),
        torch.tensor([targets.get(place, IGNORED) for place in range(len(ids))]).view(rows, row_length),
        targets=len(targets),
        tokens=len(ids),
    )


def check(batch: Batch, expected: Sequence[tuple[int, int]]) -> None:
    """Check both baselines against the given left neighbors and labels."""
    unigram, bigram = built(SEGMENTS)
    for baseline in (unigram, bigram):
        rows = [(baseline.probabilities(left), label) for left, label in expected]
        loss = -sum(math.log(probabilities_V[label]) for probabilities_V, label in rows) / len(rows)
        accuracy = sum(int(probabilities_V.argmax()) == label for probabilities_V, label in rows) / len(rows)
        assert measure_baseline(baseline, [batch], OURS[True]) == pytest.approx({"loss": loss, "accuracy": accuracy})


def test_baselines_read_left_neighbors_from_the_masked_input() -> None:
    ids = [MASK, 6, MASK, MASK, 6, 9, 9, PAD, 5, MASK, 11, 7, 7, 7, 7, 7]
    positions = [0, 1, 2, 0, 1, 0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    targets = {0: 5, 2: 7, 3: 5, 4: 6, 6: 10, 9: 6, 10: 7}
    left = [START, 6, START, MASK, 9, 5, MASK]
    check(batch_of(ids, positions, targets, row_length=8), list(zip(left, targets.values(), strict=True)))


def test_after_cls_a_segments_first_token_has_no_left_neighbour() -> None:
    ids = [CLS, MASK, 6, SEP, CLS, 7, 7, SEP]
    positions = [0, 1, 2, 3, 0, 1, 2, 3]
    check(batch_of(ids, positions, {1: 5, 2: 6, 5: 6}, row_length=8), [(START, 5), (MASK, 6), (START, 6)])


def test_baselines_weigh_every_target_of_all_batches_alike() -> None:
    _, bigram = built(SEGMENTS)
    one = batch_of([5, MASK, 7, 7], [0, 1, 2, 3], {1: 6}, row_length=4)
    two = batch_of([5, MASK, MASK, 7], [0, 1, 2, 3], {1: 9, 2: 7}, row_length=4)
    after_5, after_mask = bigram.probabilities(5), bigram.probabilities(MASK)
    expected = -(math.log(after_5[6]) + math.log(after_5[9]) + math.log(after_mask[7])) / 3
    assert measure_baseline(bigram, [one, two], OURS[True])["loss"] == pytest.approx(expected)


def test_the_bigram_beats_the_unigram_on_text_that_repeats_its_pairs() -> None:
    batch = batch_of([5, MASK, 7, 5, MASK, MASK], [0, 1, 2, 3, 4, 5], {1: 6, 2: 7, 4: 6}, row_length=6)
    unigram, bigram = built(SEGMENTS)
    assert (
        measure_baseline(bigram, [batch], OURS[True])["loss"] < measure_baseline(unigram, [batch], OURS[True])["loss"]
    )
