import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from pydantic import ValidationError

from configs import UserError, read
from finetune.data.augment import MASKED, Augmentation, augmented, generator, require_mask

Text = tuple[str, ...]


def words(number: int) -> str:
    """Return so many different words."""
    return " ".join(f"w{place}" for place in range(number))


def draws(text: str, augmentation: Augmentation, number: int = 1000) -> list[list[str]]:
    """Return the words of the text in so many epochs."""
    return [augmented((text,), augmentation, (0, epoch, 7))[0].split() for epoch in range(number)]


def dropped(before: Sequence[str], after: Sequence[str]) -> int:
    return len(before) - len(after)


def masked(before: Sequence[str], after: Sequence[str]) -> int:
    return after.count(MASKED)


def moved(before: Sequence[str], after: Sequence[str]) -> int:
    return sum(old != new for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("number", [2, 7, 20, 33])
@pytest.mark.parametrize(
    ("kind", "share", "changed", "unit"),
    [("drop", 0.1, dropped, 1), ("drop", 0.37, dropped, 1), ("mask", 0.15, masked, 1), ("swap", 0.3, moved, 2)],
)
def test_each_draw_changes_one_of_the_two_numbers_around_the_share_and_the_mean_is_the_share(
    number: int, kind: str, share: float, changed: Callable[[Sequence[str], Sequence[str]], int], unit: int
) -> None:
    text, augmentation = words(number), read(Augmentation, None, [f"{kind}={share}", "probability=1"])
    counts = [changed(text.split(), after) for after in draws(text, augmentation)]
    whole, fraction = divmod(share * number / unit, 1)
    assert set(counts) <= {unit * whole, unit * (whole + 1)}
    deviation = unit * math.sqrt(fraction * (1 - fraction) / len(counts))
    assert abs(sum(counts) / len(counts) - share * number) <= 3.5 * deviation + 1e-9


def test_every_word_is_as_likely_as_another() -> None:
    for kind, gone in (("drop", False), ("mask", False), ("swap", True)):
        text, augmentation = words(10), read(Augmentation, None, [f"{kind}=0.3", "probability=1"])
        before = text.split()
        hits = Counter[int]()
        for after in draws(text, augmentation):
            places = zip(before, after, strict=True) if gone else ((word, word * (word in after)) for word in before)
            hits.update(place for place, (old, new) in enumerate(places) if old != new)
        deviation = math.sqrt(1000 * 0.3 * 0.7)
        assert all(abs(hits[place] - 300) < 4 * deviation for place in range(10))


def test_what_is_dropped_keeps_the_order_and_what_is_swapped_all_words() -> None:
    text = words(15)
    for after in draws(text, Augmentation(drop=0.4, probability=1), 50):
        assert after == [word for word in text.split() if word in after]
    for after in draws(text, Augmentation(swap=1, probability=1), 50):
        assert sorted(after) == sorted(text.split())
        assert moved(text.split(), after) == 14
        partner = [after.index(word) for word in text.split()]
        assert [partner[place] for place in partner] == list(range(15))


def test_shares_hold_together_as_alone() -> None:
    text, augmentation = words(20), Augmentation(drop=0.25, swap=0.4, mask=0.5, probability=1)
    for after in draws(text, augmentation, 200):
        assert len(after) == 15
        assert after.count(MASKED) == 10
        assert set(after) - {MASKED} <= set(text.split())


@pytest.mark.parametrize("text", ["one", "", "  one "])
def test_the_last_word_is_never_dropped(text: str) -> None:
    hard = Augmentation(drop=0.99, swap=1, probability=1)
    assert {augmented((text,), hard, (0, epoch, 0)) for epoch in range(50)} == {(text,)}
    assert {len(after) for after in draws(words(5), hard, 200)} == {1}


def test_no_shares_change_nothing_and_draw_nothing() -> None:
    texts = ("a  b\tc", "d")
    assert augmented(texts, Augmentation(probability=1), (-1, 0, 0)) is texts  # no generator takes that seed


def test_the_wanted_share_of_examples_is_changed_and_others_in_the_next_epoch() -> None:
    text, augmentation = ("a  b c d",), Augmentation(drop=0.5, probability=0.3)
    changed = [
        {index for index in range(2000) if augmented(text, augmentation, (0, epoch, index)) != text} for epoch in (0, 1)
    ]
    for indices in changed:
        assert abs(len(indices) - 600) < 3.5 * math.sqrt(2000 * 0.3 * 0.7)
    assert abs(len(changed[0] & changed[1]) - 180) < 3.5 * math.sqrt(2000 * 0.09 * 0.91)
    assert augmented(text, Augmentation(drop=0.5, probability=0), (0, 0, 0)) is text


def test_an_example_depends_on_seed_epoch_and_index_only() -> None:
    text, augmentation = (words(30),), Augmentation(drop=0.2, swap=0.2, mask=0.2, probability=1)
    keys = [(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)]
    forwards = {key: augmented(text, augmentation, key) for key in keys}
    backwards = {key: augmented(text, augmentation, key) for key in reversed(keys)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(keys)


def test_streams_and_keys_have_numbers_of_their_own() -> None:
    keys = [(stream, key) for stream in (1, 2) for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**32, 0, 0)]]
    assert len({generator(stream, key).random() for stream, key in keys}) == len(keys)


def test_both_texts_of_a_pair_are_changed_each_by_itself() -> None:
    pair = (words(20), words(20))
    first, second = augmented(pair, Augmentation(drop=0.5, probability=1), (0, 0, 0))
    assert len(first.split()) == len(second.split()) == 10
    assert first != second


def test_each_epoch_reads_its_variant_and_changes_it_further() -> None:
    variants = (("x0 a",), ("x1 a",), ("x2 a",))
    plain = Augmentation(replace=0.5, probability=1)
    read_then = [augmented(("o a",), plain, (0, epoch, 0), variants) for epoch in range(6)]
    assert read_then == [*variants, *variants]
    half = {
        augmented(("o a",), plain.model_copy(update={"probability": 0.5}), (0, 3 * e, 0), variants) for e in range(40)
    }
    assert half == {("o a",), ("x0 a",)}
    further = Augmentation(replace=0.5, drop=0.5, probability=1)
    assert {augmented(("o a",), further, (0, 1 + 3 * e, 0), variants) for e in range(40)} == {("x1",), ("a",)}


@pytest.mark.parametrize("share", ["mask", "replace"])
def test_an_encoder_without_a_mask_token_is_refused(share: str) -> None:
    augmentation = read(Augmentation, None, [f"{share}=0.1"])
    with pytest.raises(UserError, match=rf"augment\.{share}\b"):
        require_mask(augmentation, has_mask=False)
    require_mask(augmentation, has_mask=True)
    require_mask(Augmentation(drop=0.1), has_mask=False)


@pytest.mark.parametrize("wrong", [{"drop": 1.0}, {"swap": -0.1}, {"mask": 1.5}, {"variants": 0}, {"probability": 2.0}])
def test_shares_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Augmentation.model_validate(wrong)


def test_shares_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"drop \+ mask"):
        read(Augmentation, None, ["drop=0.7", "mask=0.6"])
