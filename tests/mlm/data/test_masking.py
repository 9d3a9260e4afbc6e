import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from mlm.data.masking import MaskedRows, Masking, UnmaskedRows, corrupt, row_keys

UNITS = ("token", "word", "span")
MASK_ID = 4
ORDINARY = range(5, 105)


@dataclass(frozen=True)
class Text:
    """Rows to corrupt."""

    ids_BL: NDArray[np.int64]
    maskable_BL: NDArray[np.bool_]
    word_starts_BL: NDArray[np.bool_]
    segments_BL: NDArray[np.int32]

    def corrupted(
        self,
        masking: Masking,
        rate: float | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        rows_B: NDArray[np.int64] | None = None,
    ) -> MaskedRows:
        if rows_B is None:
            rows_B = np.arange(len(self.ids_BL))
        whole = UnmaskedRows(
            self.ids_BL, self.segments_BL, np.zeros_like(self.ids_BL), self.maskable_BL, self.word_starts_BL
        )
        return corrupt(
            whole,
            row_keys(seed, np.full(len(rows_B), epoch), rows_B),
            masking,
            rate=masking.rate if rate is None else rate,
            ordinary_ids=np.array(ORDINARY),
            mask_id=MASK_ID,
        )

    def __getitem__(self, rows: NDArray[np.int64]) -> "Text":
        return Text(self.ids_BL[rows], self.maskable_BL[rows], self.word_starts_BL[rows], self.segments_BL[rows])


def text_of(B: int, L: int, seed: int = 0, specials: float = 0.2, word_starts: float = 0.6) -> Text:
    """Return random rows that end in padding and hold special tokens, after each of which a word begins."""
    rng = np.random.default_rng(seed)
    maskable_BL = (rng.random((B, L)) >= specials) & (np.arange(L) < rng.integers(0, L + 1, B)[:, None])
    ids_BL = np.where(maskable_BL, rng.integers(ORDINARY.start, ORDINARY.stop, (B, L)), rng.integers(0, 4, (B, L)))
    starts_BL = rng.random((B, L)) < word_starts
    starts_BL[:, 0] = True
    starts_BL[:, 1:] |= ~maskable_BL[:, :-1]
    return Text(ids_BL, maskable_BL, starts_BL & maskable_BL, np.ones((B, L), np.int32))


def plain_text(B: int, L: int) -> Text:
    """Return full rows of one-token words, none of them special."""
    everywhere = np.ones((B, L), np.bool_)
    return Text(np.full((B, L), ORDINARY.start), everywhere, everywhere, np.ones((B, L), np.int32))


def chosen(corruption: MaskedRows, L: int) -> NDArray[np.bool_]:
    """Return which positions of each row are predicted, each of them once."""
    counts_BL = np.zeros((len(corruption.ids_BL), L), np.int64)
    rows, slots = np.nonzero(corruption.filled_BM)
    np.add.at(counts_BL, (rows, corruption.predicted_BM[rows, slots]), 1)
    assert counts_BL.max(initial=0) <= 1
    chosen_BL: NDArray[np.bool_] = counts_BL == 1
    return chosen_BL


def words(text: Text, row: int) -> list[list[int]]:
    """Return the positions of each word of a row."""
    found: list[list[int]] = []
    for position in np.flatnonzero(text.maskable_BL[row]).tolist():
        if text.word_starts_BL[row, position]:
            found.append([])
        found[-1].append(position)
    return found


def wanted(rate: float, n: int) -> int:
    return math.floor(rate * n + 0.5)


rows_and_lengths = st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(0, 10**6))
rates = st.floats(0.01, 0.99)


@given(rows_and_lengths, rates)
def test_of_n_tokens_exactly_rate_times_n_are_predicted(shape: tuple[int, int, int], rate: float) -> None:
    text = text_of(*shape)
    chosen_BL = chosen(text.corrupted(Masking(rate=rate)), shape[1])
    expected = [wanted(rate, n) for n in text.maskable_BL.sum(axis=1).tolist()]
    assert chosen_BL.sum(axis=1).tolist() == expected


@given(rows_and_lengths, rates, st.sampled_from(["word", "span"]))
def test_words_that_fit_are_never_split_and_stay_under_the_rate_by_less_than_one_of_them(
    shape: tuple[int, int, int], rate: float, unit: str
) -> None:
    """A word fits if it has no more tokens than its row may predict; of a longer one any tokens may be predicted."""
    text = text_of(*shape)
    chosen_BL = chosen(text.corrupted(Masking.model_validate({"unit": unit, "rate": rate})), shape[1])
    for row in range(shape[0]):
        room, left = wanted(rate, int(text.maskable_BL[row].sum())), []
        for word in words(text, row):
            taken = chosen_BL[row, word]
            if len(word) <= room and taken.any():
                assert taken.all()
            elif len(word) <= room:
                left.append(len(word))
        missing = room - int(chosen_BL[row].sum())
        assert 0 <= missing < max(left, default=1)


def words_of_lengths(B: int, lengths: list[int]) -> Text:
    """Return B equal rows of words of the given numbers of tokens."""
    starts_L = np.zeros(sum(lengths), np.bool_)
    starts_L[np.cumsum([0, *lengths[:-1]])] = True
    return replace(plain_text(B, len(starts_L)), word_starts_BL=np.tile(starts_L, (B, 1)))


@pytest.mark.parametrize("unit", ["word", "span"])
@pytest.mark.parametrize("rate", [0.005, 0.15, 0.9])
def test_a_row_of_one_word_gets_exactly_its_share_and_every_position_equally_often(rate: float, unit: str) -> None:
    B, L = 3000, 128
    masking = Masking.model_validate({"unit": unit, "rate": rate})
    chosen_BL = chosen(words_of_lengths(B, [L]).corrupted(masking), L)
    k = wanted(rate, L)
    assert (chosen_BL.sum(axis=1) == k).all()
    if unit == "word":
        narrowed = (1 - k / L) * L / (L - 1)  # k of a row's L positions, drawn without replacement
        assert chi_square_is_plausible(chosen_BL.sum(axis=0) / narrowed, np.full(L, B * k / L / narrowed))
    assert chosen_BL.any(axis=0).all()


@pytest.mark.parametrize("unit", ["word", "span"])
@pytest.mark.parametrize("rate", [0.02, 0.15, 0.9])
@pytest.mark.parametrize("short", [1, 3])
def test_a_row_of_a_short_and_a_long_word_misses_its_share_by_less_than_the_short_one(
    short: int, rate: float, unit: str
) -> None:
    B, L = 500, 128
    masking = Masking.model_validate({"unit": unit, "rate": rate})
    for lengths in ([short, L - short], [L - short, short]):
        chosen_BL = chosen(words_of_lengths(B, lengths).corrupted(masking), L)
        missing_B = wanted(rate, L) - chosen_BL.sum(axis=1)
        room = short if short <= wanted(rate, L) else 1  # a word that does not fit is no word
        assert missing_B.min() >= 0
        assert missing_B.max() < room
        # The short word is left out once in a while, so the share holds in the mean, too.
        assert missing_B.mean() < 0.05 * wanted(rate, L)


@given(rows_and_lengths, rates, st.sampled_from(UNITS))
def test_special_tokens_and_padding_are_never_chosen_and_only_chosen_tokens_change(
    shape: tuple[int, int, int], rate: float, unit: str
) -> None:
    text = text_of(*shape, specials=0.5)
    before = text.ids_BL.copy()
    corruption = text.corrupted(Masking.model_validate({"unit": unit, "rate": rate}))
    chosen_BL = chosen(corruption, shape[1])
    assert not (chosen_BL & ~text.maskable_BL).any()
    assert (corruption.ids_BL == text.ids_BL)[~chosen_BL].all()
    assert np.isin(corruption.ids_BL[chosen_BL], [MASK_ID, *ORDINARY]).all()
    assert (corruption.predicted_BM[~corruption.filled_BM] == 0).all()
    assert np.array_equal(text.ids_BL, before)


@given(rows_and_lengths, rates, rates, st.floats(0, 1), st.sampled_from(UNITS))
def test_slots_hold_every_rate_of_the_schedule(
    shape: tuple[int, int, int], rate: float, final_rate: float, progress: float, unit: str
) -> None:
    text = text_of(*shape)
    masking = Masking.model_validate({"unit": unit, "rate": rate, "final_rate": final_rate})
    now = masking.rate_at(progress)
    assert min(rate, final_rate) - 1e-12 <= now <= max(rate, final_rate) + 1e-12
    corruption = text.corrupted(masking, now)
    assert corruption.predicted_BM.shape == corruption.filled_BM.shape == (shape[0], masking.slots(shape[1]))
    if unit == "token":
        expected = [wanted(now, n) for n in text.maskable_BL.sum(axis=1).tolist()]
        assert corruption.filled_BM.sum(axis=1).tolist() == expected


def test_the_rate_goes_linearly_from_the_first_to_the_last() -> None:
    masking = Masking(rate=0.3, final_rate=0.1)
    assert [masking.rate_at(progress) for progress in (0.0, 0.25, 1.0)] == pytest.approx([0.3, 0.25, 0.1])
    assert [Masking(rate=0.2).rate_at(progress) for progress in (0.0, 0.5, 1.0)] == [0.2, 0.2, 0.2]
    assert masking.slots(100) == 30
    assert Masking(rate=0.1, final_rate=0.3).slots(100) == 30


@pytest.mark.parametrize(
    ("unit", "mask_share", "random_share", "word_starts"),
    [
        *(("token", *shares, 0.6) for shares in ((0.8, 0.1), (0.5, 0.5), (0.0, 0.3), (1.0, 0.0))),
        *(("word", 0.8, 0.1, 0.6), ("span", 0.8, 0.1, 0.6), ("word", 0.8, 0.1, 0.0)),
    ],
)
def test_shares_of_masked_random_and_kept_tokens(
    unit: str, mask_share: float, random_share: float, word_starts: float
) -> None:
    """Counts of n independent draws are within 5 sqrt(n p (1 - p)) of n p (once in 1.7 million they are not)."""
    text = text_of(2000, 128, specials=0.0, word_starts=word_starts)
    masking = Masking.model_validate(
        {"unit": unit, "rate": 0.4, "mask_share": mask_share, "random_share": random_share}
    )
    corruption = text.corrupted(masking)
    chosen_BL = chosen(corruption, 128)
    seen, true = corruption.ids_BL[chosen_BL], text.ids_BL[chosen_BL]
    n, same = len(seen), 1 / len(ORDINARY)  # a random token is the true one as often as any other
    assert n > 40_000
    for count, p in (
        ((seen == MASK_ID).sum(), mask_share),
        (((seen != MASK_ID) & (seen != true)).sum(), random_share * (1 - same)),
        ((seen == true).sum(), 1 - mask_share - random_share * (1 - same)),
    ):
        assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-9


def chi_square_is_plausible(observed: NDArray[np.int64] | NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    """Tell whether the statistic is within 5 standard deviations, sqrt(2 (n - 1)) each, of its mean, n - 1."""
    freedom = len(observed) - 1
    statistic = ((observed - expected) ** 2 / expected).sum()
    return bool(abs(statistic - freedom) < 5 * math.sqrt(2 * freedom))


def test_random_tokens_are_uniform_over_the_ordinary_ones() -> None:
    text = plain_text(1000, 128)
    corruption = text.corrupted(Masking(rate=0.5, mask_share=0.0, random_share=1.0))
    drawn = corruption.ids_BL[chosen(corruption, 128)]
    assert drawn.min() == ORDINARY.start
    assert drawn.max() == ORDINARY.stop - 1
    observed = np.bincount(drawn - ORDINARY.start, minlength=len(ORDINARY))
    assert chi_square_is_plausible(observed, np.full(len(ORDINARY), len(drawn) / len(ORDINARY)))


def test_every_position_is_chosen_equally_often() -> None:
    chosen_BL = chosen(plain_text(5000, 64).corrupted(Masking(rate=0.25)), 64)
    # A position of 64 is drawn with p = 1/4: its count varies by n p (1 - p), 3/4 of what the statistic divides by,
    # and by 64/63 of that, as the sixteen of a row are drawn without replacement.
    narrowed = 0.75 * 64 / 63
    assert chi_square_is_plausible(chosen_BL.sum(axis=0) / narrowed, np.full(64, 5000 * 0.25 / narrowed))


@pytest.mark.parametrize("change", ["epoch", "seed", "row"])
def test_masks_of_another_epoch_seed_or_row_are_independent(change: str) -> None:
    B, L, k = 4000, 64, 16
    text = plain_text(B, L)
    first_BL = chosen(text.corrupted(Masking(rate=k / L)), L)
    other = {
        "epoch": lambda: text.corrupted(Masking(rate=k / L), epoch=1),
        "seed": lambda: text.corrupted(Masking(rate=k / L), seed=1),
        "row": lambda: text.corrupted(Masking(rate=k / L), rows_B=np.arange(1, B + 1)),
    }[change]()
    shared = (first_BL & chosen(other, L)).sum(axis=1)
    # Hypergeometric: k of L against k of L.
    mean, variance = k * k / L, k * (k / L) * (1 - k / L) * (L - k) / (L - 1)
    assert abs(shared.mean() - mean) < 5 * math.sqrt(variance / B)
    assert abs(shared.var() / variance - 1) < 5 * math.sqrt(2 / B)


@pytest.mark.parametrize("unit", UNITS)
def test_a_rows_masks_do_not_depend_on_the_rest_of_its_batch(unit: str) -> None:
    text, masking = text_of(40, 30), Masking.model_validate({"unit": unit, "rate": 0.3})
    rows_B = np.random.default_rng(0).permutation(1000)[:40]
    whole = text.corrupted(masking, seed=5, epoch=2, rows_B=rows_B)
    order = np.random.default_rng(1).permutation(40)
    for size in (1, 7, 40):
        for cut in range(0, 40, size):
            some = order[cut : cut + size]
            part = text[some].corrupted(masking, seed=5, epoch=2, rows_B=rows_B[some])
            for name in ("ids_BL", "predicted_BM", "filled_BM"):
                assert np.array_equal(getattr(part, name), getattr(whole, name)[some])


def test_spans_have_geometric_lengths_up_to_ten_words() -> None:
    """Joshi et al. 2020, section 3.1, on words of one token: each row's first slots hold its first span."""
    B, L = 4000, 1000
    corruption = plain_text(B, L).corrupted(Masking(unit="span", rate=10 / L))
    ends_BM = np.diff(corruption.predicted_BM, axis=1, append=-1) != 1
    observed = np.bincount(ends_BM.argmax(axis=1), minlength=10)
    expected = np.array([0.8**length * 0.2 for length in range(9)] + [0.8**9])
    assert chi_square_is_plausible(observed, B * expected)


def test_spans_are_runs_of_words_and_words_are_not() -> None:
    text = text_of(500, 200, specials=0.0)

    def neighbors(unit: str) -> float:
        chosen_BL = chosen(text.corrupted(Masking.model_validate({"unit": unit, "rate": 0.15})), 200)
        after_BL = text.word_starts_BL[:, 1:] & chosen_BL[:, :-1]
        return float((chosen_BL[:, 1:] & after_BL).sum() / after_BL.sum())

    # Within 0.03: 4,462 draws, bounds of 4 deviations; a row's last span is cut, which takes 0.02 from the spans.
    mean_length = sum(0.8**longer for longer in range(10))
    assert neighbors("word") == pytest.approx(0.15, abs=0.03)
    assert neighbors("span") == pytest.approx(1 - 1 / mean_length, abs=0.03)


@pytest.mark.parametrize("settings", [{"rate": 0.0}, {"rate": 1.0}, {"final_rate": 0.0}, {"mask_share": 1.1}])
def test_rates_and_shares_outside_their_ranges_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Masking.model_validate(settings)


def test_shares_over_one_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"mask_share \+ random_share is 1\.2, over 1"):
        Masking(mask_share=0.8, random_share=0.4)


def test_no_span_reaches_into_the_next_text_of_its_row() -> None:
    """With texts of three words, an unbroken span is cut at each border: borders are as rarely crossed as by chance."""
    B, L, length = 2000, 60, 3
    text = plain_text(B, L)
    segments_BL = np.broadcast_to(np.arange(L) // length + 1, (B, L)).astype(np.int32)
    rate = 3 / L
    chosen_BL = np.zeros((B, L), np.bool_)
    corruption = replace(text, segments_BL=segments_BL).corrupted(Masking(unit="span", rate=rate))
    rows, slots = np.nonzero(corruption.filled_BM)
    chosen_BL[rows, corruption.predicted_BM[rows, slots]] = True
    pairs_BL = chosen_BL[:, 1:] & chosen_BL[:, :-1]
    crossing_BL = np.diff(segments_BL, axis=1) != 0
    # Two separate spans are neighbors across a border now and then; one span within a text is the usual reason.
    assert pairs_BL[:, crossing_BL[0]].mean() < 0.1 * pairs_BL[:, ~crossing_BL[0]].mean()
