from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tests.tokenizer.published import KINDS, TEXTS, published
from tests.tokenizer.samples import MIXED, WORDS, earlier, long_texts, prose, tokenizer
from tokenizer.cached_encoder import CachedEncoder, Encoded, normalize_by
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import MASK

LINES = prose(300)
LEARNED = {
    "plain": tokenizer(LINES, size=500),
    "normalizing": tokenizer(LINES, size=500, normalisation="nfkc", lowercase=True),
    "cls_sep": tokenizer(LINES, size=500, cls_sep=True),
    "prefix_space": tokenizer(LINES, size=500, normalisation="nfkc", add_prefix_space=True),
}
LEARNED["earlier"] = earlier(LEARNED["plain"])
LEARNED["added_token"] = tokenizer(LINES, size=500, add_prefix_space=True)
LEARNED["added_token"].add_tokens(["trem", "a\u0301"])
LOOKUPS = {name: CachedEncoder(learned) for name, learned in LEARNED.items()}

PUBLISHED = {name: CachedEncoder(published(name)) for name in KINDS}

texts = st.text(min_size=1) | st.text(
    st.sampled_from(
        "aabs'trem!?.,12   \t\n é한글中。🙂\u200b\u00a0\u3000\u0301\x1c\x85¨½[]MASK-_कािทิשָعَի՞\u200c\u200d\ufe0f"
    ),
    min_size=1,
)


def as_text(learned: Tokenizer) -> Tokenizer:
    """Return a copy of a tokenizer that reads special tokens in a text as text."""
    plain = Tokenizer.from_str(learned.to_str())
    plain.encode_special_tokens = True
    return plain


PLAIN = {name: as_text(one) for name, one in LEARNED.items()} | {name: as_text(published(name)) for name in KINDS}


def reference(name: str, text: str) -> tuple[list[int], list[int]]:
    """Return the ids and word starts that the library itself gives."""
    encoding = PLAIN[name].encode(text, add_special_tokens=False)
    words = encoding.word_ids
    return encoding.ids, [int(place == 0 or words[place - 1] != word) for place, word in enumerate(words)]


def unpacked(encoded: Encoded) -> list[tuple[list[int], list[int]]]:
    ends = list(accumulate(encoded.lengths.tolist(), initial=0))
    spans = [slice(*span) for span in pairwise(ends)]
    return [(encoded.tokens[span].tolist(), encoded.word_starts[span].tolist()) for span in spans]


@pytest.mark.parametrize("name", LEARNED)
@given(st.lists(texts, min_size=1, max_size=5))
@settings(max_examples=200)
def test_tokens_and_word_starts_are_the_librarys(name: str, several: list[str]) -> None:
    expected = [reference(name, text) for text in several]
    assert unpacked(LOOKUPS[name].encode(several)) == expected


PIECES = (
    *("the", "cat", "un", "able", "3.14", "don't", "Ｃafé", "cafe\u0301s", "|||EMAIL|||", "|||IP_ADDRESS|||", "|||"),
    *(
        "[unused1]",
        "[unused",
        "北京",
        "▁",
        "[",
        "]",
        "<",
        "고양이",
        "\u0301",
        "é",
        ",",
        "...",
        "-_",
        "🙂",
        "\t",
        "\u3000",
    ),
)
spaced = st.lists(st.sampled_from([*PIECES, *[" "] * 12, "  "]), min_size=1, max_size=12).map("".join)


@pytest.mark.parametrize("name", KINDS)
@given(st.lists(spaced | texts, min_size=1, max_size=3))
@settings(max_examples=60)
def test_published_tokenizers_encode_as_by_the_library(name: str, several: list[str]) -> None:
    expected = [reference(name, text)[0] for text in several]
    assert [ids for ids, _ in unpacked(PUBLISHED[name].encode(several))] == expected


@pytest.mark.parametrize("name", KINDS)
def test_sentences_of_many_scripts_are_encoded_as_by_the_library(name: str) -> None:
    plain = [text for text in TEXTS[-60:] if "[MASK]" not in text]  # which a Unigram model would take for the token
    several = [*plain, *(f"{text} {text}" for text in plain)]
    expected = [reference(name, text)[0] for text in several]
    assert [ids for ids, _ in unpacked(PUBLISHED[name].encode(several))] == expected


@pytest.mark.parametrize("name", KINDS)
def test_no_text_becomes_a_special_token(name: str) -> None:
    special = SpecialTokens.of(published(name))
    names = [str(published(name).id_to_token(number)) for number in special.ids]
    several = [*names, *(f"a {one} {one}b c{one}" for one in names), "".join(names)]
    encoded = unpacked(PUBLISHED[name].encode(several))
    assert all(ids and not special.found_in(ids) for ids, _ in encoded)


def of_pieces(name: str, pieces: Sequence[str]) -> Tokenizer:
    """Return a tokenizer of a published kind whose vocabulary is its special tokens and `pieces`."""
    marks = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    changed, vocabulary = published(name), {piece: number for number, piece in enumerate([*marks, *pieces])}
    if name == "bert":
        changed.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    elif name == "roberta":
        for character in pre_tokenizers.ByteLevel.alphabet():
            vocabulary.setdefault(character, len(vocabulary))
        merges = [(piece[:end], piece[end]) for piece in pieces for end in range(1, len(piece))]
        for left, right in merges:
            vocabulary.setdefault(left + right, len(vocabulary))
        changed.model = models.BPE(vocabulary, merges)
    else:
        changed.model = models.Unigram([(piece, -1.0 - len(vocabulary)) for piece in vocabulary], unk_id=3)
    return Tokenizer.from_str(changed.to_str())


@pytest.mark.parametrize(
    ("name", "pieces", "text", "words"),
    [
        (
            "bert",
            ("un", "##believ", "##able", ",", "!"),
            "Unbelievable, unbelievable!!",
            "un##believ##able , un##believ##able ! !",
        ),
        ("bert", ("don", "t", "'", "北", "京"), "don't 北京", "don ' t 北 京"),
        (
            "roberta",
            ("un", "Ġun", "believ", "able"),
            "unbelievable (unbelievable) unbelievable",
            "unbelievable Ġ( unbelievable ) Ġunbelievable",
        ),
        ("roberta", ("don", "北"), "don't 3.14!! 北北", "don 't Ġ3 . 14 !! Ġ北北"),
        (
            "xlm_roberta",
            ("▁un", "un", "believ", "able", ",", "!", "▁(", "▁"),
            "unbelievable, (unbelievable!! unbelievable",
            "▁unbelievable , ▁( unbelievable !! ▁unbelievable",
        ),
        (
            "xlm_roberta",
            ("▁don", "'", "t", "▁", "北", "京", "3", "14", "."),
            "don't 北京 3.14",
            "▁don 't ▁北京 ▁3 . 14",
        ),
    ],
)
def test_words_begin_where_a_reader_says(name: str, pieces: Sequence[str], text: str, words: str) -> None:
    tokenizer = of_pieces(name, pieces)
    encoded = CachedEncoder(tokenizer).encode([text])
    assert encoded.word_starts[0] == 1
    shown = ""
    for token, begins in zip(encoded.tokens.tolist(), encoded.word_starts.tolist(), strict=True):
        shown += " " * begins + str(tokenizer.id_to_token(token))
    assert shown.strip() == words.replace("北", {"roberta": "åĮĹ"}.get(name, "北"))


def test_every_character_is_encoded_as_by_the_library() -> None:
    characters = [chr(code) for code in range(1, 0x11000, 7) if not 0xD800 <= code < 0xE000]
    several = [f"{c} a{c} {c}  1{c}b'{c} {c}{c}" for c in characters]
    plain = Tokenizer.from_str(LEARNED["plain"].to_str())
    expected = [encoding.ids for encoding in plain.encode_batch(several, add_special_tokens=False)]
    assert [ids for ids, _ in unpacked(CachedEncoder(plain).encode(several))] == expected


@pytest.mark.parametrize("name", LEARNED)
def test_other_scripts_and_long_words_are_encoded_as_by_the_library(name: str) -> None:
    several = [*(text for text, _ in WORDS.values()), *long_texts().values(), "a" * 5000, f"{'b1' * 600} {'c' * 1001}"]
    expected = [reference(name, text) for text in several]
    assert unpacked(LOOKUPS[name].encode(several)) == expected


def test_special_tokens_in_a_text_are_plain_text() -> None:
    for text in ("[MASK]", "a [MASK] b [SEP]", "[PAD][UNK][CLS]", "é[SEP]한"):
        ((ids, _),) = unpacked(LOOKUPS["plain"].encode([text]))
        assert min(ids) > MASK
        assert LEARNED["plain"].decode(ids) == text


def test_the_table_is_emptied_before_it_grows_too_large() -> None:
    small = CachedEncoder(LEARNED["plain"], limit_chunks=5)
    for _ in range(2):
        for text in (*MIXED, *LINES[:50]):
            assert unpacked(small.encode([text])) == [reference("plain", text)]


NORMALIZERS = [
    normalizers.Lowercase(),
    normalizers.NFKC(),
    normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()]),
    normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("a", "o")]),
    normalizers.Sequence([normalizers.Sequence([normalizers.NFC()]), normalizers.StripAccents()]),
    normalizers.BertNormalizer(),
]


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=str)
@given(st.text(st.characters(max_codepoint=127)) | texts)
def test_a_text_is_normalized_as_the_library_does(normalizer: normalizers.Normalizer, text: str) -> None:
    assert normalize_by(normalizer)(text) == normalizer.normalize_str(text)
    assert normalize_by(None)(text) == text
