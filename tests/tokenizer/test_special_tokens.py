from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from configs import UserError
from tests.tokenizer.published import KINDS, published
from tests.tokenizer.samples import prose, tokenizer
from tokenizer.cached_encoder import CachedEncoder
from tokenizer.special_tokens import SpecialTokens, ordinary_ids, padded_to
from tokenizer.vocabulary import CLS, MASK, PAD, SEP, UNK, load, serialize


@pytest.mark.parametrize("cls_sep", [False, True])
def test_the_special_tokens_of_our_own_vocabularies_are_the_first_five(cls_sep: bool) -> None:
    special = SpecialTokens.of(tokenizer(prose(50), cls_sep=cls_sep))
    assert special == SpecialTokens(PAD, MASK, UNK, CLS, SEP, cls_sep, between=(SEP,), ids=(0, 1, 2, 3, 4))
    assert ordinary_ids(special, 300).tolist() == list(range(5, 300))
    assert special.framed([7, 8]) == ([CLS, 7, 8, SEP] if cls_sep else [7, 8])


@pytest.mark.parametrize("name", KINDS)
def test_the_special_tokens_of_published_kinds_are_told_by_their_names(name: str) -> None:
    known = published(name)
    special = SpecialTokens.of(known)
    marks = ("<pad>", "<mask>", "<unk>", "<s>", "</s>")
    if known.token_to_id("[CLS]") is not None:
        marks = ("[PAD]", "[MASK]", "[UNK]", "[CLS]", "[SEP]")
    roles = (special.pad, special.mask, special.unknown, special.cls, special.sep)
    assert roles == tuple(map(known.token_to_id, marks))
    text = known.encode("a cat", add_special_tokens=False).ids
    assert special.framed(text) == known.encode("a cat").ids
    assert [special.cls, *text, *special.between, *text, special.sep] == known.encode("a cat", "a cat").ids
    declared = {number for number, token in known.get_added_tokens_decoder().items() if token.special}
    assert set(special.ids) == declared
    assert set(ordinary_ids(special, known.get_vocab_size()).tolist()) == set(range(known.get_vocab_size())) - declared


def test_the_tokens_that_are_put_around_a_text_come_before_those_of_the_usual_names() -> None:
    known = published("bert")
    known.add_special_tokens(["<begin>", "<end>"])
    known.post_processor = published("roberta").post_processor
    changed = known.to_str().replace('"<s>"', '"<begin>"').replace('"</s>"', '"<end>"')
    special = SpecialTokens.of(Tokenizer.from_str(changed))
    assert (special.cls, special.sep) == tuple(
        Tokenizer.from_str(changed).encode("a").ids[:: len(known.encode("a").ids) - 1]
    )


@pytest.mark.parametrize("name", ["bert", "modernbert", "xlm_roberta"])
def test_a_tokenizer_is_padded_to_the_rows_of_an_embedding(tmp_path: Path, name: str) -> None:
    known = published(name)
    size = known.get_vocab_size() + 13
    path = tmp_path / "tokenizer.json"
    path.write_bytes(serialize(padded_to(known, size)))
    padded = load(path)
    assert padded.get_vocab_size() == size
    assert sorted(padded.get_vocab().values()) == list(range(size))
    assert {token: number for token, number in padded.get_vocab().items() if number < size - 13} == known.get_vocab()
    special = SpecialTokens.of(padded)
    assert special.ids == (*SpecialTokens.of(known).ids, *range(size - 13, size))
    last = str(padded.id_to_token(size - 1))
    for text in [*prose(5), f"a {last}{last} b"]:
        ids = CachedEncoder(padded).encode([text]).tokens
        assert np.array_equal(ids, CachedEncoder(known).encode([text]).tokens)
        assert ids.max() < size - 13
    assert serialize(padded_to(known, size - 13)) == serialize(known)
    with pytest.raises(UserError, match=rf"{size - 13} tokens.*{size - 14} rows"):
        padded_to(known, size - 14)
