import pytest

from finetune.data.class_names import listed, short


def test_short_names_are_kept_and_long_ones_cut() -> None:
    assert short("disaster") == "disaster"
    assert short("x" * 24) == "x" * 24
    assert short("x" * 25) == "x" * 21 + "..."


@pytest.mark.parametrize("name", ["\u200b", "\u2060\u00ad", "\u202e", "\ufeff"])
def test_a_name_that_nobody_would_see_is_shown_by_its_codes(name: str) -> None:
    assert short(name) == ascii(name)


def test_a_list_of_names_is_bounded_whatever_their_length_and_number() -> None:
    assert listed(["a", "b\nc"]) == "a, b c"
    shown = listed(["a" * 10_000] * 1000)
    assert shown.endswith("... and 960 more")
    assert len(shown) < 1200
