from dataclasses import replace

import pytest
import torch

from configs import UserError
from mlm.evaluation.fill_blanks import guess, read_blanks, sample_predictions
from tests.mlm.samples import CPU
from tests.tokenizer.published import KINDS, published
from tests.tokenizer.samples import prose, tokenizer
from tokenizer.special_tokens import SpecialTokens
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


def test_the_tokenizer_normalizes_around_the_blank() -> None:
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


@pytest.mark.parametrize("name", KINDS)
def test_a_blank_is_written_as_ours_or_as_the_tokenizers_own(name: str) -> None:
    tokenizer = published(name)
    special = SpecialTokens.of(tokenizer)
    own = str(tokenizer.id_to_token(special.mask))
    tokenizer.encode_special_tokens = False
    expected = tokenizer.encode(f"the cat saw {own} house, {own}.").ids
    for sentence in (
        f"the cat  saw {own} house, [MASK].",
        f"the cat saw [MASK] house, {own}.",
        "the cat saw [MASK] house, [MASK].",
    ):
        batch = read_blanks(sentence, published(name), ROW_LENGTH)
        assert batch.ids_BL[0].tolist() == expected
        assert batch.predicted_BM[0].tolist() == [
            place for place, token in enumerate(expected) if token == special.mask
        ]


class Certain(torch.nn.Module):
    """Scores the given token highest in every slot, and all special tokens higher still."""

    def __init__(self, size: int, special: SpecialTokens, best: int) -> None:
        super().__init__()
        self.scores_V = torch.zeros(size)
        self.scores_V[best], self.scores_V[list(special.ids)] = 5.0, 9.0

    def forward(self, ids_BL: torch.Tensor, mask: object, predicted_BM: torch.Tensor) -> torch.Tensor:
        return self.scores_V.repeat(predicted_BM.numel(), 1)


@pytest.mark.parametrize("name", KINDS)
def test_a_guess_is_shown_with_the_space_before_it_and_is_never_special(name: str) -> None:
    tokenizer = published(name)
    special, size = SpecialTokens.of(tokenizer), tokenizer.get_vocab_size()
    encoded = {
        word: tokenizer.encode(f" {word}", add_special_tokens=False).ids for word in ("saw", "it", "of", "a", "I")
    }
    word, best = next((word, ids[0]) for word, ids in encoded.items() if len(ids) == 1)
    batch = read_blanks("the [MASK] house", tokenizer, ROW_LENGTH)
    ((first, *others),) = guess(Certain(size, special, best), batch, tokenizer, CPU, size)
    assert first.token == f" {word}"
    assert len(others) == size - len(special.ids) - 1
    labelled = replace(batch, labels_BM=torch.tensor([[best]]))
    (shown,) = sample_predictions(Certain(size, special, best), labelled, tokenizer, CPU, 1)
    frame = [str(tokenizer.id_to_token(token)) for token in (special.cls or 0, special.sep or 0)]
    assert "".join(shown.split()) == f"{frame[0]}the[{word}]house{frame[1]}"
    assert f"the [{word}] house" in shown
