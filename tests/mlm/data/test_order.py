"""The order of rows: uniform, complete, the same at any step at once, and mixed in exact shares."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlm.data.masking import row_keys
from mlm.data.order import RowOrder, permuted
from tokenizer.mixture import PERIOD


def keys(count: int, seed: int = 0) -> NDArray[np.uint64]:
    return row_keys(seed, np.zeros(count, np.int64), np.arange(count))


def whole(size: int, seed: int = 0) -> NDArray[np.int64]:
    """Return one order of all numbers below `size`."""
    return permuted(np.arange(size), size, np.full(size, keys(1, seed)[0]))


def deviations(counts: NDArray[np.int64]) -> float:
    """Return by how many standard deviations chi-square of counts exceeds its mean, if all are equally probable."""
    freedom, expected = counts.size - 1, counts.mean()
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def test_an_order_holds_every_number_once_for_every_size_to_2000() -> None:
    for size in range(1, 2001):
        assert np.array_equal(np.sort(whole(size, size)), np.arange(size))


def test_an_order_holds_every_number_once_for_sizes_to_a_million() -> None:
    for size in np.exp(np.random.default_rng(0).uniform(0, np.log(10**6), 100)).astype(int).tolist():
        counts = np.bincount(whole(size), minlength=size)
        assert len(counts) == size
        assert (counts == 1).all()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_orders_of_a_few_rows_are_equally_probable(size: int) -> None:
    orders = list(itertools.permutations(range(size)))
    count = 400 * len(orders)
    columns = [permuted(np.full(count, place), size, keys(count)) for place in range(size)]
    codes = sum(column * size**place for place, column in enumerate(columns))
    counts = [(codes == sum(row * size**place for place, row in enumerate(order))).sum() for order in orders]
    assert sum(counts) == count
    assert abs(deviations(np.array(counts))) < 4


@pytest.mark.parametrize("size", [20, 64])
def test_any_two_neighbors_are_equally_probable(size: int) -> None:
    count = 100 * size * size
    first, second = (permuted(np.full(count, place), size, keys(count, size)) for place in (size // 2, size // 2 + 1))
    pairs = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert (np.diagonal(pairs) == 0).all()
    assert abs(deviations(pairs[~np.eye(size, dtype=bool)])) < 4


@pytest.mark.parametrize("size", [1000, 65_536, 10**9, 10**12])
def test_neighbors_are_scattered_over_all_rows(size: int) -> None:
    taken = min(size // 2, 100_000)
    order = permuted(np.arange(taken), size, np.full(taken, keys(1)[0]))
    assert deviations(np.bincount(order * 100 // size, minlength=100)) < 4
    for lag in (1, 2, 16):
        correlation = np.corrcoef(order[:-lag], order[lag:])[0, 1]
        assert abs(correlation) < 4.5 / np.sqrt(len(order))


def test_seed_epoch_and_corpus_change_the_whole_order() -> None:
    size = 4000

    def order(seed: int, epoch: int) -> NDArray[np.int64]:
        return RowOrder((size,)).rows(seed, epoch, size)[0]

    orders = [order(0, 0), order(1, 0), order(0, 1), order(2**62, 0)]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 10, "about one row by chance"
    mixed = RowOrder((size, size), (0.5, 0.5)).rows(0, 0, 2 * size)[0]
    first, second = mixed[mixed < size], mixed[mixed >= size] - size
    assert (first == second).sum() < 10


@pytest.mark.parametrize("batch_rows", [1, 4, 7])
def test_each_epoch_visits_every_row_once_in_a_new_order(batch_rows: int) -> None:
    order = RowOrder((61,))
    steps = [order.rows(3, step, batch_rows) for step in range(4 * 61 // batch_rows + 1)]
    visited, epochs = (np.concatenate(parts) for parts in zip(*steps, strict=True))
    assert (np.diff(epochs) >= 0).all()
    orders = [visited[epochs == epoch].tolist() for epoch in range(4)]
    assert all(sorted(order) == list(range(61)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_a_step_may_cross_into_the_next_epoch() -> None:
    _, epochs_B = RowOrder((61,)).rows(3, 15, 4)
    assert epochs_B.tolist() == [0] + [1] * 3


def test_the_rows_of_a_step_are_a_function_of_seed_and_step() -> None:
    order = RowOrder((40, 21), (0.25, 0.75))
    forward = [order.rows(3, step, 5)[0].tolist() for step in range(20)]
    backward = [RowOrder((40, 21), (0.25, 0.75)).rows(3, step, 5)[0].tolist() for step in reversed(range(20))]
    assert forward == backward[::-1]
    assert forward != [order.rows(4, step, 5)[0].tolist() for step in range(20)]
    rows, epochs = order.rows(3, 10**15, 5)  # any step at once
    assert ((rows >= 0) & (rows < 61)).all()
    assert (epochs > 10**12).all()


shares_of = st.lists(st.integers(1, 500), min_size=2, max_size=6).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


@given(shares_of, st.integers(0, 10**9))
def test_a_mixture_has_its_shares_in_every_thousand_rows(shares: list[float], thousand: int) -> None:
    order = RowOrder(tuple(range(50, 50 + len(shares))), tuple(shares))
    rows, _ = order.rows(0, thousand, 1000)
    counts = np.bincount(order.corpora(rows), minlength=len(shares))
    assert np.abs(counts - 1000 * np.array(shares)).max() <= len(shares) / 2 + 1


def test_shares_in_thousandths_are_exact() -> None:
    shares = (0.501, 0.3, 0.15, 0.049)
    order = RowOrder((7, 300, 5, 1000), shares)
    for thousand in (0, 1, 12, 99, 10**9):
        rows, _ = order.rows(0, thousand, 1000)
        assert np.bincount(order.corpora(rows)).tolist() == [501, 300, 150, 49]
    rows, _ = order.rows(0, 3, PERIOD)
    assert np.bincount(order.corpora(rows)).tolist() == [50_100, 30_000, 15_000, 4_900]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.data())
def test_each_corpus_of_a_mixture_has_epochs_of_its_own(sizes: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 20), min_size=len(sizes), max_size=len(sizes)))
    order = RowOrder(tuple(sizes), tuple(weight / sum(weights) for weight in weights))
    visited, epochs = order.rows(1, 0, 320)
    for corpus, first in enumerate(np.cumsum(sizes) - sizes):
        mine = order.corpora(visited) == corpus
        assert (np.diff(epochs[mine]) >= 0).all()
        for epoch in range(int(epochs[mine].max(initial=0))):  # the last one may be under way
            assert sorted(visited[mine & (epochs == epoch)]) == list(range(first, first + sizes[corpus]))


def test_a_corpus_is_spread_evenly_over_the_steps() -> None:
    order = RowOrder((50, 50, 50), (0.5, 0.3, 0.2))
    corpora = order.corpora(order.rows(0, 0, 200 * 32)[0]).reshape(200, 32)
    for corpus, share in enumerate(order.shares):
        assert np.abs((corpora == corpus).sum(axis=1) - 32 * share).max() < 2
