import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from configs import UserError
from tests.tokenizer.published import KINDS, published
from tests.tokenizer.samples import MIXED, WORDS, earlier, long_texts, prose, tokenizer
from tokenizer.cached_encoder import CachedEncoder
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import MASK, SPECIAL_TOKENS, continuing_text, encode_masked, load, serialize

LINES = prose(300)
LEARNED = tokenizer(LINES, size=400)


def save(folder: Path, content: str | bytes) -> Path:
    path = folder / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@given(st.text())
def test_any_text_comes_back_out_of_its_tokens(text: str) -> None:
    assert LEARNED.decode(LEARNED.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", [*MIXED, "\x00\x1f\x7f\u0085\ufeff", "한글 ᄒᆞᆫ글", "👩🏽‍🚀🇰🇷", "a\u0301 á"])
def test_chosen_texts_come_back_from_bytes_alone(text: str) -> None:
    bytes_only = tokenizer([], size=261)
    encoding = bytes_only.encode(text)
    assert len(encoding.ids) == len(text.encode())
    assert bytes_only.decode(encoding.ids) == text


@pytest.mark.parametrize("size", [261, 262, 400, 600])
def test_the_vocabulary_has_exactly_the_size_asked_for(size: int) -> None:
    learned = tokenizer(LINES, size=size)
    assert learned.get_vocab_size() == size
    assert sorted(learned.get_vocab().values()) == list(range(size))


def test_the_special_tokens_have_the_first_ids() -> None:
    assert [LEARNED.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_too_little_text_for_the_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"2\d\d tokens, not 5,000: .*vocabulary\.size"):
        tokenizer(["one two one two"], size=5000)


def test_the_same_text_gives_the_same_bytes() -> None:
    assert serialize(tokenizer(LINES, size=500)) == serialize(tokenizer(LINES, size=500))


def test_merges_are_learned_from_no_more_text_than_allowed() -> None:
    head = LINES[:50]
    limit = len("".join(head).encode())
    assert serialize(tokenizer(LINES, size=300, training_bytes=limit)) == serialize(tokenizer(head, size=300))


def test_the_blank_takes_in_the_space_before_it() -> None:
    the, house = LEARNED.encode("the").ids, LEARNED.encode(" house").ids
    assert encode_masked(LEARNED, ["the [MASK] house", "the"], "[MASK]") == [[*the, MASK, *house], the]
    assert encode_masked(LEARNED, ["the# [MASK]", "#  # house"], "#")[1] == [MASK, MASK, *house]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalisation": "nfc"},
        {"normalisation": "nfkc", "lowercase": True},
        {"cls_sep": True},
        {"add_prefix_space": True, "cls_sep": True, "lowercase": True},
    ],
    ids=str,
)
def test_transformers_tokenizes_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    learned = tokenizer(LINES, size=400, **settings)
    theirs: Any = PreTrainedTokenizerFast(tokenizer_file=str(save(tmp_path, serialize(learned))))  # type: ignore[no-untyped-call]
    for text in [*MIXED, *LINES[:20], "Ａ ﬁne ½ café ¨x", "A\u0301"]:
        ids = learned.encode(text).ids
        assert theirs(text, split_special_tokens=True)["input_ids"] == ids
        assert theirs.decode(ids) == learned.decode(ids, skip_special_tokens=False)
    for blank in ("cat  [MASK] [MASK] of", "[MASK] cat", "un[MASK]able"):
        assert theirs(blank, add_special_tokens=False)["input_ids"] == encode_masked(learned, [blank], "[MASK]")[0]
    assert len(theirs) == 400
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", WORDS)
def test_a_combining_mark_belongs_to_its_word(name: str) -> None:
    text, words = WORDS[name]
    assert CachedEncoder(LEARNED).encode([text]).word_starts.sum() == words


def test_a_merge_joins_a_letter_and_its_mark() -> None:
    assert len(tokenizer(["नदी कि ओर, नदी के पास"] * 2, size=275).encode("नदी").ids) == 1


def test_an_earlier_vocabulary_keeps_its_pattern(tmp_path: Path) -> None:
    kept = load(save(tmp_path, earlier(LEARNED).to_str()))
    assert serialize(kept) == serialize(earlier(LEARNED))
    assert CachedEncoder(kept).encode(["की"]).word_starts.tolist() == [1, 0, 0, 1, 0, 0]


def test_english_gives_the_tokens_and_merges_of_the_earlier_pattern() -> None:
    lines = [f"{re.sub('[^ -~]', '', line)} {'=' * 79} isn't we've 1,000" for line in LINES]
    expected = Tokenizer(models.BPE())
    expected.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    expected.train_from_iterator(lines, trainer)
    parts = [json.loads(learned.to_str())["model"] for learned in (tokenizer(lines, size=500), expected)]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("text", long_texts().values(), ids=long_texts())
def test_no_text_is_left_out_because_its_words_are_long(text: str) -> None:
    learned = tokenizer([text], size=265)
    assert len(learned.encode(text).ids) < len(text.encode())
    assert "".join(learned.decode(learned.encode(text).ids)) == text


def test_a_long_word_is_not_cut_before_a_mark() -> None:
    for syllable in ("नि", "a\u0323\u0302", "ම්\u200d"):
        encoded = CachedEncoder(LEARNED).encode([syllable * 2000])
        starts = encoded.word_starts.nonzero()[0].tolist()
        assert 2 < len(starts) < 8
        for start in starts:
            before = LEARNED.decode(encoded.tokens[:start].tolist())
            assert len(before) % len(syllable) == 0


def test_normalisation_and_lower_case_are_part_of_the_tokenizer() -> None:
    learned = tokenizer(LINES, normalisation="nfkc", lowercase=True)
    assert learned.encode("Ａ\ufb01 CAFE\u0301").ids == learned.encode("afi caf\u00e9").ids
    assert tokenizer(LINES).encode("Cafe\u0301").ids != tokenizer(LINES).encode("Caf\u00e9").ids


def test_a_prefix_space_gives_the_first_word_the_tokens_that_it_has_elsewhere() -> None:
    learned = tokenizer(LINES, add_prefix_space=True)
    the, house, able = (learned.encode(f" {word}").ids for word in ("the", "house", "able"))
    assert learned.encode("the house").ids == learned.encode(" the house").ids == [*the, *house]
    assert encode_masked(learned, ["the house", "[MASK] house"], "[MASK]") == [[*the, *house], [MASK, *house]]
    inside = encode_masked(learned, ["un[MASK]able [SEP]"], "[MASK]")[0]
    assert inside[inside.index(MASK) + 1 :][: len(able)] != able
    assert learned.decode(inside) == "unable [SEP]"
    assert continuing_text(learned, house) == " house"
    assert all(learned.decode(learned.encode(text).ids) == text for text in (*MIXED, *LINES))


def test_cls_and_sep_stand_around_the_text_only_if_asked_for() -> None:
    assert LEARNED.encode("one").tokens[0] != "[CLS]"
    framed = tokenizer(LINES, cls_sep=True).encode("one").tokens
    assert (framed[0], framed[-1]) == ("[CLS]", "[SEP]")


@pytest.mark.parametrize(
    "settings", [{}, {"normalisation": "nfc", "lowercase": True, "cls_sep": True}, {"add_prefix_space": True}], ids=str
)
def test_a_saved_tokenizer_loads_as_it_was(tmp_path: Path, settings: dict[str, Any]) -> None:
    learned = tokenizer(LINES, **settings)
    assert serialize(load(save(tmp_path, serialize(learned)))) == serialize(learned)


def test_truncation_and_padding_that_others_saved_are_put_off(tmp_path: Path) -> None:
    changed = Tokenizer.from_str(LEARNED.to_str())
    changed.enable_truncation(2)
    changed.enable_padding(length=50)
    assert serialize(load(save(tmp_path, changed.to_str()))) == serialize(LEARNED)


def foreign(**changes: object) -> str:
    return json.dumps({**json.loads(LEARNED.to_str()), **changes})


def word_level() -> str:
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return words.to_str()


def letters_alone() -> str:
    letters = Tokenizer(models.BPE({"[PAD]": 0, "[MASK]": 1, "▁": 2, "a": 3, "c": 4, "t": 5}, []))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    letters.add_special_tokens(["[PAD]", "[MASK]"])
    return letters.to_str()


def without_a_byte() -> str:
    parts = json.loads(tokenizer([], size=261).to_str())
    parts["model"]["vocab"].pop("Ġ")
    parts["model"]["vocab"]["space"] = 260
    return json.dumps(parts)


@pytest.mark.parametrize("content", ["", "{}", "not json", b"\xff\xfe\x00", LEARNED.to_str()[:-50]])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json is no valid tokenizer") as caught:
        load(save(tmp_path, content))
    assert "\n" not in str(caught.value)


def changed(name: str, **changes: Any) -> str:
    """Return a published kind with other settings of its model; a part of the tokenizer is replaced by its name."""
    parts = json.loads(published(name).to_str())
    for part, value in changes.items():
        (parts["model"] if part in parts["model"] else parts)[part] = value
    return json.dumps(parts)


def renamed(name: str, token: str) -> str:
    return json.dumps(json.loads(published(name).to_str().replace(token, token.replace(">", "X").replace("]", "X"))))


REFUSED = {
    "another model": (word_level(), "WordLevel"),
    "a byte is missing": (without_a_byte(), "1 bytes"),
    "characters are dropped": (letters_alone(), "drops unknown characters"),
    "no decoder": (foreign(decoder=None), "decoder"),
    "no decoder of pieces": (changed("bert", decoder=None), "decoder"),
    "dropout": (changed("roberta", dropout=0.1), "at random"),
    "no unknown character": (changed("xlm_roberta", unk_id=None), "unknown characters"),
    "no mask": (renamed("roberta", "<mask>"), r"no mask token, such as \[MASK\] or <mask>: add one"),
    "no pad": (renamed("bert", "[PAD]"), r"no pad token, such as \[PAD\] or <pad>: add one"),
    "special tokens elsewhere": (
        changed(
            "bert",
            post_processor=json.loads(changed("bert"))["post_processor"]
            | {"single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]},
        ),
        "one before and one behind",
    ),
    "ids with holes": (
        changed("bert", vocab={**json.loads(changed("bert"))["model"]["vocab"], "zebra": 999}),
        "ids 0 to 500",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_cannot_be_used_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, reason = REFUSED[name]
    with pytest.raises(
        UserError, match=rf"tokenizer\.json is no tokenizer that can be used here: .*{reason}"
    ) as caught:
        load(save(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_every_published_kind_loads_as_it_was(tmp_path: Path, name: str) -> None:
    loaded = load(save(tmp_path, serialize(published(name))))
    assert serialize(loaded) == serialize(published(name))
    theirs: Any = PreTrainedTokenizerFast(tokenizer_file=str(save(tmp_path, serialize(loaded))))  # type: ignore[no-untyped-call]
    for text in [*LINES[:20], "Ａ ﬁne ½ café ¨x"]:
        assert theirs(text)["input_ids"] == loaded.encode(text).ids


@pytest.mark.parametrize("name", KINDS)
def test_a_mask_in_a_text_of_any_kind_is_that_of_the_tokenizer(name: str) -> None:
    plain, special = published(name), SpecialTokens.of(published(name))
    mask = str(plain.id_to_token(special.mask))
    text = f"the cat {mask} {mask} of, the {mask}."
    plain.encode_special_tokens = False
    assert encode_masked(published(name), [text], mask) == [plain.encode(text, add_special_tokens=False).ids]
    (ids,) = encode_masked(published(name), [f"the # {mask}"], "#")
    assert ids.count(special.mask) == 1


@pytest.mark.parametrize("name", KINDS)
def test_the_text_of_tokens_inside_a_text_has_its_spaces(name: str) -> None:
    tokenizer = published(name)
    ids = tokenizer.encode("the cat sat on the house", add_special_tokens=False).ids
    pieces = [continuing_text(tokenizer, [token]) for token in ids]
    assert "".join(pieces).strip() == "the cat sat on the house"


def test_the_text_of_our_own_tokens_is_what_they_decode_to() -> None:
    assert [continuing_text(LEARNED, [i]) for i in range(400)] == [
        LEARNED.decode([i], skip_special_tokens=False) for i in range(400)
    ]


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json"):
        load(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load(tmp_path)


LONG_LEARNING = """
import random
from tokenizer.vocabulary import VocabularyConfig, learn
chance = random.Random(0)
def texts():
    for _ in range(3000):
        yield "".join(chance.choices("ACGT", k=1000))
    print("all read", flush=True)
learn(texts(), VocabularyConfig(size=130_000))
"""


def test_ctrl_c_is_heard_while_merges_are_learned() -> None:
    child = subprocess.Popen([sys.executable, "-c", LONG_LEARNING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"all read\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)  # learning takes minutes
    assert errors.endswith(b"KeyboardInterrupt\n")
