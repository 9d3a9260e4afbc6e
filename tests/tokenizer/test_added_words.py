import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from configs import UserError
from tests.tokenizer.published import published
from tests.tokenizer.samples import prose, tokenizer
from tokenizer.added_words import add_words, most_cut_words, read_words
from tokenizer.cached_encoder import CachedEncoder
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import load, serialize

transformers = pytest.importorskip("transformers", reason="it must read the tokenizers alike")

NEW = ["aftershock", "mudslide", "Übersee"]
KINDS = ["bert", "bert_cased", "roberta", "roberta_prefix", "modernbert", "ours", "ours_prefix"]
LEARNED = {
    "ours": tokenizer(prose(200), size=400),
    "ours_prefix": tokenizer(prose(200), size=400, add_prefix_space=True),
}


def before(name: str) -> Tokenizer:
    return Tokenizer.from_str(LEARNED[name].to_str()) if name in LEARNED else published(name)


def ids_of(known: Tokenizer, text: str) -> list[int]:
    """Return the ids that our fast encoder gives, which must be the library's."""
    encoded: list[int] = CachedEncoder(known).encode([text]).tokens.tolist()
    known.encode_special_tokens = True
    assert encoded == known.encode(text, add_special_tokens=False).ids
    return encoded


@pytest.mark.parametrize("name", KINDS)
def test_an_added_word_is_one_token_wherever_it_stands_alone(name: str) -> None:
    known = before(name)
    size = known.get_vocab_size()
    grown, pieces = add_words(known, NEW)
    assert grown.get_vocab_size() == size + len(pieces)
    assert {token: number for token, number in grown.get_vocab().items() if number < size} == known.get_vocab()
    assert SpecialTokens.of(grown) == SpecialTokens.of(known)
    text = "the aftershock (mudslide), mudslide! «Übersee» and aftershock"
    ids = ids_of(grown, text)
    new = [token for token in ids if token >= size]
    assert len(new) == 5
    restored = [piece for token in ids for piece in (pieces[token - size] if token >= size else [token])]
    assert restored == ids_of(known, text)
    starts = CachedEncoder(grown).encode([text]).word_starts
    assert all(starts[place] for place, token in enumerate(ids) if token >= size)


@pytest.mark.parametrize("name", KINDS)
def test_all_else_keeps_its_tokens(name: str) -> None:
    known = before(name)
    grown, _ = add_words(known, NEW)
    longer = ["aftershocks", "preaftershock", "xÜbersee", "mudslideé", "aftershockmudslide"]
    if name.startswith("bert"):  # to byte-level BPE letters and digits are words of their own
        longer += ["mudslide2", "2mudslide", "mudslide_s"]
    for text in [*prose(30), *longer, *(f"the {word}, ({word}) {word}" for word in longer), "after shock mud slide"]:
        assert ids_of(grown, text) == ids_of(known, text)
    for text in ("Aftershock", "the MUDSLIDE", "übersee", "(AFTERSHOCK)"):
        assert (ids_of(grown, text) == ids_of(known, text)) == (name != "bert")


@pytest.mark.parametrize("name", ["bert", "modernbert"])
@given(
    st.lists(st.sampled_from(["aftershock", "after", "mudslide", "s", "é", " ", " ", "_", "-", "北", "2"]), max_size=9)
)
@settings(max_examples=60)
def test_the_fast_encoder_finds_added_words_as_the_library_does(name: str, parts: list[str]) -> None:
    ids_of(GROWN[name], "".join(parts))


GROWN = {name: add_words(before(name), NEW)[0] for name in ("bert", "modernbert")}


@pytest.mark.parametrize("name", KINDS)
def test_transformers_reads_added_words_alike(tmp_path: Path, name: str) -> None:
    grown, _ = add_words(before(name), NEW)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(serialize(grown))
    assert serialize(load(path)) == serialize(grown)
    theirs: Any = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    for text in [*prose(5), "An aftershock, a mudslide (mudslide) and aftershocks of Übersee"]:
        assert theirs(text)["input_ids"] == grown.encode(text).ids
        assert theirs.decode(grown.encode(text).ids) == grown.decode(grown.encode(text).ids, skip_special_tokens=False)
    assert len(theirs) == grown.get_vocab_size()


def test_a_byte_level_word_has_a_row_with_and_one_without_the_space() -> None:
    known = published("roberta")
    grown, pieces = add_words(known, ["aftershock"])
    assert [known.decode(row) for row in pieces] == [" aftershock", "aftershock"]
    assert grown.decode(ids_of(grown, "(aftershock aftershock")) == "(aftershock aftershock"
    again, rest = add_words(grown, ["mudslide"])
    assert len(rest) == 2
    assert len(ids_of(again, " mudslide aftershock")) == 2


def test_a_vocabulary_with_entries_that_its_merges_never_give_is_refused() -> None:
    known = published("roberta")
    parts = json.loads(known.to_str())
    parts["model"]["vocab"] = known.get_vocab() | {"Ġzebra": known.get_vocab_size()}
    with pytest.raises(UserError, match=r"merges never give its entries Ġzebra, which"):
        add_words(Tokenizer.from_str(json.dumps(parts)), ["aftershock"])


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("bert", [""], "empty"),
        ("bert", ["\u0301"], "empty"),
        ("bert", ["two words"], "'two words' holds white space"),
        ("bert", ["a\tb"], "white space"),
        ("bert", ["mudslide", "Zebra"], "already: zebra: remove"),
        ("bert", ["mudslide", "MUDSLIDE"], "twice.*mudslide"),
        ("modernbert", ["mudslide", "the", "zebra"], "already: the, zebra: remove"),
        ("modernbert", ["covid19"], "'covid19' is no single word"),
        ("xlm_roberta", ["mudslide"], "model is Unigram.*inside of longer words"),
    ],
)
def test_words_that_cannot_be_added_are_named(name: str, words: list[str], reason: str) -> None:
    known, _ = add_words(published(name), ["zebra"]) if name != "xlm_roberta" else (published(name), None)
    with pytest.raises(UserError, match=reason) as caught:
        add_words(known, words)
    assert "\n" not in str(caught.value)


def test_words_are_read_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeffaftershock\r\n\n  mudslide \n", encoding="utf-8")
    assert read_words(path) == ["aftershock", "mudslide"]
    path.write_text("\n \n")
    with pytest.raises(UserError, match=r"words\.txt holds no words"):
        read_words(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot read the words"):
        read_words(path)
    with pytest.raises(UserError, match=r"no such file of words to add: .*none\.txt"):
        read_words(tmp_path / "none.txt")


def test_the_words_that_save_most_tokens_come_first() -> None:
    known = published("bert")
    texts = [
        "Aftershock! #aftershock (aftershock), aftershocks",
        "covid-19 covid19 don't",
        "the the the of of of",
        "mudslide",
    ]
    texts *= 2
    texts += ["mudslide, mudslide, mudslide", "http://mudslide.org/aftershock x_y @aftershock"]
    texts += ["zebra-crossing", "zzz zzz", *["Québec"] * 3]
    pieces = {word: len(known.encode(word, add_special_tokens=False).ids) for word in ("aftershock", "mudslide")}
    pieces["quebec"] = len("quebec")  # unknown to this vocabulary
    seen = {"aftershock": 7, "mudslide": 5, "quebec": 3}  # zzz is too rare, and aftershocks too
    expected = sorted(seen, key=lambda word: (-seen[word] * (pieces[word] - 1), word))
    found = most_cut_words(known, texts, 10)
    assert [word for word in found if word in seen] == expected
    assert set(found) - set(seen) <= {"of", "the"}  # which this small vocabulary may cut
    assert most_cut_words(known, texts[::-1], 2) == found[:2]
    grown, _ = add_words(known, found)
    assert most_cut_words(grown, texts, 10) == []


def test_the_marks_of_a_letter_belong_to_its_word() -> None:
    texts = ["नदी की, नदी। नदी"]
    assert most_cut_words(LEARNED["ours"], texts, 1) == ["नदी"]
    assert most_cut_words(published("roberta"), texts, 1) == []  # its pattern cuts a word at its marks


def test_the_ids_of_pieces_are_those_of_the_smaller_vocabulary() -> None:
    known = published("bert")
    _, pieces = add_words(known, ["aftershock"])
    assert np.max(pieces[0]) < known.get_vocab_size()
