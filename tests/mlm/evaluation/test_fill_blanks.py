import pytest

from configs import UserError
from mlm.evaluation.fill_blanks import read_blanks
from tests.tokenizer.samples import prose, tokenizer
from tokenizer.vocabulary import CLS, MASK, SEP

ROW_LENGTH = 64
LEARNED = {cls_sep: tokenizer(prose(100), cls_sep=cls_sep) for cls_sep in (False, True)}
LOWER = tokenizer(prose(100), lowercase=True)


def ids_of(sentence: str, *, cls_sep: bool = False) -> list[int]:
    ids: list[int] = read_blanks(sentence, LEARNED[cls_sep], ROW_LENGTH).ids_BL[0].tolist()
    return ids


@pytest.mark.parametrize(
    "prompt",
    ["The  cat\tsaw [MASK] house. ", " The cat saw  [MASK]  house.", "The\ncat\r\nsaw\u00a0[MASK]\u3000house.\n"],
)
@pytest.mark.parametrize("cls_sep", [False, True])
def test_white_space_is_collapsed_as_in_training(prompt: str, cls_sep: bool) -> None:
    assert ids_of(prompt, cls_sep=cls_sep) == ids_of("The cat saw [MASK] house.", cls_sep=cls_sep)


def test_all_but_the_blank_is_plain_text() -> None:
    tokenizer = LEARNED[True]
    plain = [tokenizer.encode(part, add_special_tokens=False).ids for part in ("[PAD] a [SEP]", " b[CLS] [UNK]")]
    assert ids_of("[PAD] a [SEP] [MASK] b[CLS] [UNK]", cls_sep=True) == [CLS, *plain[0], MASK, *plain[1], SEP]


def test_the_tokenizer_normalises_around_the_blank() -> None:
    batch = read_blanks("THE [MASK] OF [MASK]", LOWER, ROW_LENGTH)
    assert batch.predicted_BM.tolist() == [(batch.ids_BL[0] == MASK).nonzero().flatten().tolist()]
    assert batch.ids_BL.tolist() == read_blanks("the [MASK] of [MASK]", LOWER, ROW_LENGTH).ids_BL.tolist()


@pytest.mark.parametrize("prompt", ["a [mask].", "a [ MASK ].", "a <mask>.", "", "\ufeff "])
def test_another_spelling_of_the_blank_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match=r"no \[MASK\].*write \[MASK\]"):
        ids_of(prompt)


@pytest.mark.parametrize("prompt", ["no blank " * 10_000, "[MASK] is too long " * 10_000, "é [MASK]\udcff" * 10_000])
def test_a_mistake_is_short_whatever_the_prompt(prompt: str) -> None:
    with pytest.raises(UserError) as caught:
        ids_of(prompt)
    assert len(str(caught.value)) < 400


def test_bytes_that_are_no_text_are_found_wherever_they_stand() -> None:
    with pytest.raises(UserError, match="this is not UTF-8"):
        ids_of("The cat saw the house of the dog. " * 10 + "[MASK] \udcff.")
