import math
import re
from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer

from configs import UserError
from finetune.data.augment import MASKED
from finetune.data.augment_contextual import BATCH_TEXTS, variants
from finetune.encoders.run import RunPredictor
from mlm.distributed.world import World
from mlm.evaluation import fill_blanks
from mlm.model.encoder import EncoderConfig
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.model.initialize import initialize
from mlm.objectives.masked import compute_logits
from tokenizer.vocabulary import SPECIAL_TOKENS, VocabularyConfig, learn

CPU = World(torch.device("cpu"), torch.float32)
CONFIG = ModelConfig(encoder=EncoderConfig(width=16, heads=2, feedforward_width=24, layers=2))
WORDS = ["forest", "fire", "near", "the", "lake", "storm", "people", "river", "city", "house"]
CORPUS = [f"the {a} {b} near 12 the {c}." for a in WORDS for b in WORDS for c in WORDS]
ROW_LENGTH = 24
SIZE = 306
"""Enough tokens for each of the words to be one."""


def predictor_of(
    seed: int = 0, *, cls_sep: bool = False, row_length: int = ROW_LENGTH, size: int = SIZE
) -> RunPredictor:
    tokenizer = learn(iter(CORPUS), VocabularyConfig(size=size, cls_sep=cls_sep))
    model = MaskedLanguageModel(CONFIG, size, row_length)
    initialize(model, CONFIG.encoder, seed)
    return RunPredictor(model.eval(), tokenizer, row_length, CPU)


def prefer(predictor: RunPredictor, scores: dict[str, float]) -> None:
    """Make the scores of some entries, told by their texts, high or low whatever the context is."""
    with torch.no_grad():
        predictor.model.encoder.embeddings.tokens.weight.zero_()
        for token in range(SIZE):
            text = predictor.tokenizer.decode([token], skip_special_tokens=False)
            predictor.model.output_bias[token] = scores.get(text, 0.0)


def test_the_words_of_a_vocabulary_are_whole_ones_of_letters() -> None:
    predictor = predictor_of()
    pieces = [predictor.tokenizer.decode([token], skip_special_tokens=False) for token in range(SIZE)]
    for piece, word in zip(pieces, predictor.words, strict=True):
        assert word == (piece[1:] if re.fullmatch(r" [a-z]+", piece) else None)
    assert set(WORDS) <= set(predictor.words)
    assert {" 12", "."} <= set(pieces) - set(predictor.words)
    assert predictor.words[: len(SPECIAL_TOKENS)] == [None] * len(SPECIAL_TOKENS)


def test_a_dominant_word_takes_the_places_of_words_and_of_nothing_else() -> None:
    predictor = predictor_of(row_length=128)
    prefer(predictor, {" storm": 30.0, "[SEP]": 99.0, "[MASK]": 99.0, "ing": 99.0, ".": 99.0, " 12": 99.0})
    text = (
        "the lake,  near 12 (fire) #city\t@river http://t.co/fire don't U.S. a_b lake-fire 2nd: people!? see, caf\u00e9"
    )
    expected = (
        "the storm,  storm 12 (fire) #city\t@river http://t.co/fire don't U.S. a_b lake-fire 2nd: storm!? storm, storm"
    )
    assert variants([(text,)], predictor, 0.999_999, 1, 0) == [((expected,),)]


def test_pairs_and_variants_keep_their_places() -> None:
    predictor = predictor_of()
    prefer(predictor, {" storm": 30.0})
    texts = [("a lake", "b c lake!"), ("alone",), ("", "x river")]
    expected = [(("a storm", "b storm storm!"),) * 3, (("alone",),) * 3, (("", "x storm"),) * 3]
    assert variants(texts, predictor, 0.999_999, 3, 0) == expected


def test_words_are_sampled_from_the_softmax_over_whole_words() -> None:
    predictor = predictor_of()
    chances = {" storm": 0.5, " river": 0.3, " city": 0.15, " house": 0.05}
    others = dict.fromkeys((f" {word}" for word in predictor.words if word is not None), -40.0)
    prefer(predictor, others | {word: math.log(chance) for word, chance in chances.items()} | {"[CLS]": 9.0, ".": 9.0})
    text, number = "a " + " ".join(["lake"] * 20), 200
    found = Counter(
        word for (variant,) in variants([(text,)], predictor, 0.999_999, number, 0)[0] for word in variant.split()[1:]
    )
    draws = found.total() - found["lake"]
    chi_square = sum((found[word.strip()] - chance * draws) ** 2 / (chance * draws) for word, chance in chances.items())
    assert set(found) <= {word.strip() for word in chances} | {"lake"}
    assert draws > 0.999 * 20 * number
    assert chi_square < 11.34  # the 1 % point for 3 degrees of freedom


def test_each_variant_replaces_the_share_of_its_words() -> None:
    predictor = predictor_of()
    prefer(predictor, {" storm": 30.0})
    text = "12 " + " ".join(["lake"] * 9)
    counts = [variant.count("storm") for (variant,) in variants([(text,)], predictor, 0.3, 1000, 0)[0]]
    assert set(counts) == {2, 3}
    assert abs(sum(counts) / 1000 - 2.7) < 3.5 * math.sqrt(0.7 * 0.3 / 1000)


def test_choices_are_those_of_seed_variant_and_example() -> None:
    predictor = predictor_of()
    texts = [(line,) for line in CORPUS[:150]]
    assert len(texts) > 2 * BATCH_TEXTS
    first = variants(texts, predictor, 0.5, 2, 0)
    assert variants(texts, predictor, 0.5, 2, 0) == first
    assert [one[:1] for one in first] == variants(texts, predictor, 0.5, 1, 0)
    assert variants(texts[:70], predictor, 0.5, 2, 0) == first[:70]
    assert variants(texts, predictor, 0.5, 2, 1) != first
    assert sum(one[0] != one[1] for one in first) > 100


@pytest.mark.parametrize("cls_sep", [False, True])
def test_predictions_are_those_of_each_text_alone(cls_sep: bool) -> None:
    predictor = predictor_of(1, cls_sep=cls_sep)
    texts = ["the [MASK] fire", "the [MASK] near the [MASK] lake.", "no blank", "[MASK]"]
    together = predictor.predict([text.replace("[MASK]", MASKED) for text in texts])
    assert [len(logits_MV) for logits_MV in together] == [1, 2, 0, 1]
    for text, logits_MV in zip(texts, together, strict=True):
        if len(logits_MV):
            batch = fill_blanks.read_blanks(text, predictor.tokenizer, ROW_LENGTH)
            torch.testing.assert_close(
                logits_MV, compute_logits(predictor.model, batch, CPU).detach(), rtol=0, atol=1e-6
            )


def test_low_precision_gives_float32_scores_on_the_cpu() -> None:
    exact = predictor_of(1)
    low = RunPredictor(exact.model, exact.tokenizer, ROW_LENGTH, World(torch.device("cpu"), torch.bfloat16))
    texts = [f"the {MASKED} fire"]
    assert low.predict(texts)[0].dtype == torch.float32
    torch.testing.assert_close(low.predict(texts)[0], exact.predict(texts)[0], rtol=0, atol=0.02)


@pytest.mark.parametrize("cls_sep", [False, True])
def test_words_beyond_the_longest_row_stay(cls_sep: bool) -> None:
    predictor = predictor_of(cls_sep=cls_sep, row_length=8)
    prefer(predictor, {" storm": 30.0})
    ((after,),) = variants([("the" + " lake" * 12,)], predictor, 0.999_999, 1, 0)[0]
    fits = 8 - 1 - 2 * cls_sep
    assert after == "the" + " storm" * fits + " lake" * (12 - fits)


def test_a_special_token_in_a_text_is_plain_text() -> None:
    predictor = predictor_of()
    prefer(predictor, {" storm": 30.0})
    assert variants([("a [MASK] lake [SEP]",)], predictor, 0.999_999, 1, 0) == [(("a [MASK] storm [SEP]",),)]


def test_a_word_is_replaced_with_its_marks() -> None:
    predictor = predictor_of(row_length=128)
    prefer(predictor, {" storm": 30.0})
    for word in ("cafe\u0301", "बारिश", "மழை", "ฝนตก", "שָׁלוֹם", "ශ්\u200dරී", "ի՞նչ"):
        assert variants([(f"a {word}! {word}",)], predictor, 0.999_999, 1, 0) == [(("a storm! storm",),)]


def test_the_words_of_a_vocabulary_have_marks() -> None:
    tokenizer = learn(iter([f"{line} पुल के नीचे" for line in CORPUS]), VocabularyConfig(size=SIZE))
    assert "नीचे" in RunPredictor(MaskedLanguageModel(CONFIG, SIZE, ROW_LENGTH).eval(), tokenizer, ROW_LENGTH, CPU).words


def test_the_callers_tokenizer_is_left_as_it_was() -> None:
    tokenizer = learn(iter(CORPUS), VocabularyConfig(size=SIZE))
    before = tokenizer.to_str()
    model = MaskedLanguageModel(CONFIG, SIZE, ROW_LENGTH).eval()
    RunPredictor(model, tokenizer, ROW_LENGTH, CPU).predict([f"the {MASKED}", "a"])
    assert tokenizer.to_str() == before
    assert Tokenizer.from_str(before).truncation is None


def test_a_vocabulary_without_words_is_refused() -> None:
    predictor = predictor_of(size=261)
    with pytest.raises(UserError, match=r"augment\.replace"):
        variants([("a b",)], predictor, 0.5, 1, 0)
