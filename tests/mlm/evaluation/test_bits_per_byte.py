import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from configs import UserError
from mlm.evaluation.bits_per_byte import (
    HiddenWord,
    bits_per_byte,
    choose_words,
    sentences_of,
    token_count_bits_per_byte,
)
from mlm.experiment import pretrain
from mlm.model.attention import SegmentMask
from mlm.model.encoder import EncoderConfig, LearnedPositions
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from tests.mlm.runs import config_in, write_corpus
from tests.mlm.samples import CPU, offsets
from tests.tokenizer.published import published
from tokenizer import vocabulary
from tokenizer.shards.format import ShardArrays
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import MASK, VocabularyConfig

ENGLISH = [
    "The encoder reads every sentence of the text twice, and then it waits.",
    "Words that are hidden one at a time are told from their context.",
    "A 2nd one, (shorter) still!",
    "Alone",
]
UNSPACED = [
    "春天的河边有许多白色的鸟儿，它们每天早上都会在水面上飞来飞去，寻找食物，直到太阳落山。",
    "春の川辺にはたくさんの白い鳥がいて、毎朝水面を飛び回りながら食べ物を探しています。",
    "แม่น้ำไหลผ่านหมู่บ้านเล็กๆและผู้คนตื่นแต่เช้าเพื่อไปตลาดใกล้วัดเก่า",
]
"""Chinese, Japanese and Thai: a sentence has no space."""
DNA = ["GATTACAGGT" * 60, "TTGACCATGA" * 60]
KOREAN = ["문장에서 한 단어를 가리고 나머지로 맞힌다.", "어휘가 달라도 같은 단어를 가린다.", "이모지 😀 도 있다."]
ROW_LENGTH = 130


def tokenizer_of(
    size: int, *, cls_sep: bool = False, texts: Sequence[str] = (*ENGLISH, *KOREAN), repeats: int = 3
) -> Tokenizer:
    return vocabulary.learn(iter([*texts] * repeats), VocabularyConfig(size=size, cls_sep=cls_sep))


def model_of(vocabulary_size: int) -> MaskedLanguageModel:
    """Return a model whose every prediction depends much on what it sees, and where."""
    torch.manual_seed(0)
    config = EncoderConfig(width=16, heads=2, feedforward_width=24, layers=1, positions=LearnedPositions())
    model = MaskedLanguageModel(ModelConfig(encoder=config), vocabulary_size, ROW_LENGTH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return model.eval()


def pieces_by_bytes(word: HiddenWord, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Return the pieces that hold a byte of the word or of the space before it, from the bytes of each token.

    Every character of a byte-level token stands for one byte; special tokens have none of the text's.
    """
    begin = len(word.text[: word.start].encode()) - word.text[: word.start].endswith(" ")
    end = len(word.text[: word.end].encode())
    found, before = [], 0
    for piece, token in enumerate(ids):
        length = 0 if token < 5 else len(tokenizer.id_to_token(token) or "")
        if length and before < end and before + length > begin:
            found.append(piece)
        before += length
    assert before == len(word.text.encode())
    return found


@torch.no_grad()
def written_out(model: MaskedLanguageModel, tokenizer: Tokenizer, words: list[HiddenWord]) -> float:
    """Multiply the probabilities of each word's pieces, each in a row of its own with those after it hidden."""
    bits, total_bytes = 0.0, 0
    for word in words:
        ids = tokenizer.encode(word.text).ids
        pieces = pieces_by_bytes(word, tokenizer, ids)
        probability = 1.0
        for i, piece in enumerate(pieces):
            seen = torch.tensor([MASK if place in pieces[i:] else token for place, token in enumerate(ids)])[None]
            segment_mask = SegmentMask.of(torch.ones_like(seen).int(), torch.arange(len(ids))[None], torch.float32)
            logits_MV = model(seen, segment_mask, torch.tensor([[piece]]))
            probability *= logits_MV[0].double().softmax(dim=0)[ids[piece]].item()
        bits -= math.log2(probability)
        total_bytes += sum(len(tokenizer.id_to_token(ids[piece]) or "") for piece in pieces)
        total_bytes -= word.text[: word.start].endswith(" ")
    return bits / total_bytes


def every_word(sentences: list[str]) -> Iterator[HiddenWord]:
    for sentence in sentences:
        start = 0
        for word in sentence.split():
            start = sentence.index(word, start)
            yield HiddenWord(sentence, start, start + len(word))
            start += len(word)


@pytest.mark.parametrize("size", [261, 400])
@pytest.mark.parametrize("cls_sep", [False, True])
@pytest.mark.parametrize("sentences", [ENGLISH, KOREAN], ids=["English", "Korean"])
def test_bits_are_the_negative_log_of_the_product_of_token_probabilities(
    sentences: list[str], cls_sep: bool, size: int
) -> None:
    tokenizer, model = tokenizer_of(size, cls_sep=cls_sep), model_of(size)
    words = list(every_word(sentences))
    assert any(word.start == 0 for word in words)
    assert any(word.end == len(word.text) for word in words)
    expected = written_out(model, tokenizer, words)
    assert bits_per_byte(model, tokenizer, words, ROW_LENGTH, CPU) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [261, 320])
@pytest.mark.parametrize("cls_sep", [False, True])
def test_bits_of_texts_without_spaces_are_counted_over_the_hidden_tokens(cls_sep: bool, size: int) -> None:
    """A token may reach over the border of a word: it is hidden and counted whole."""
    texts = [*UNSPACED, *DNA]
    tokenizer, model = tokenizer_of(size, cls_sep=cls_sep, texts=texts), model_of(size)
    words = choose_words(iter(texts), 10, 96)
    assert len(words) == len(texts)
    assert bits_per_byte(model, tokenizer, words, ROW_LENGTH, CPU) == pytest.approx(
        written_out(model, tokenizer, words), rel=1e-5
    )


def test_the_prefix_space_is_no_byte_of_a_word() -> None:
    spring = "春天的"  # read as one token, with the space
    settings = VocabularyConfig(size=360, add_prefix_space=True)
    tokenizer, model = vocabulary.learn(iter([*ENGLISH, spring, spring] * 3), settings), model_of(360)
    assert len(tokenizer.encode(spring).ids) == 1
    words = list(every_word(ENGLISH))
    with_space = [HiddenWord(f" {word.text}", word.start + 1, word.end + 1) for word in words]
    words.append(HiddenWord(spring, 1, 2))
    with_space.append(HiddenWord(f" {spring}", 1, 4))
    assert bits_per_byte(model, tokenizer, words, ROW_LENGTH, CPU) == pytest.approx(
        written_out(model, tokenizer, with_space), rel=1e-5
    )


def test_a_window_too_long_for_another_ones_tokenizer_is_refused_before_training(tmp_path: Path) -> None:
    """Read byte by byte, the prefix space of its vocabulary takes a slot as well."""
    write_corpus(tmp_path / "corpus.txt")
    learned = vocabulary.learn(iter(ENGLISH * 3), VocabularyConfig(size=300, add_prefix_space=True, cls_sep=True))
    (tmp_path / "theirs.json").write_bytes(vocabulary.serialize(learned))
    options = [f"data.tokenizer={tmp_path / 'theirs.json'}", "data.row_length=64"]
    with pytest.raises(
        UserError, match=r"window_bytes = 62 does not fit data\.row_length = 64: .* at most 61 with this"
    ):
        pretrain(config_in(tmp_path, *options, "evaluation.window_bytes=62"))
    assert not list((tmp_path / "runs").glob("*/config.yaml"))
    assert pretrain(config_in(tmp_path, *options, "evaluation.window_bytes=61")).results is not None


def test_a_uniform_model_needs_as_many_bits_for_a_byte_of_dna_as_for_one_of_a_word() -> None:
    tokenizer, model = tokenizer_of(261), model_of(261)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    words = choose_words(iter(DNA), 10, 96)
    assert {word.end - word.start for word in words} == {8}
    assert bits_per_byte(model, tokenizer, words, ROW_LENGTH, CPU) == pytest.approx(math.log2(261), rel=1e-6)


@pytest.mark.parametrize("cls_sep", [False, True])
def test_a_special_token_named_in_the_text_is_plain_text(cls_sep: bool) -> None:
    sentences = ["BERT puts [CLS] first.", "Then [SEP] ends it.", "So [MASK] hides, [PAD] pads and [UNK] is unknown."]
    tokenizer, model = tokenizer_of(261, cls_sep=cls_sep), model_of(261)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    words = choose_words(iter(sentences), 10, 96)
    assert sorted(word.text for word in words) == sorted(sentences)
    sizes = [(word.end - word.start, int(word.start > 0)) for word in words]
    bits = bits_per_byte(model, tokenizer, words, ROW_LENGTH, CPU)
    # Byte by byte, with the space before each word.
    pieces, hidden = sum(size + space for size, space in sizes), sum(size for size, _ in sizes)
    assert bits == pytest.approx(pieces * math.log2(261) / hidden, rel=1e-6)


def test_the_number_of_tokens_costs_the_negative_log_of_its_share_among_training_words() -> None:
    words, training = list(every_word(ENGLISH)), list(every_word(KOREAN))
    for size in (261, 400):
        tokenizer = tokenizer_of(size)

        def tokens(word: HiddenWord, tokenizer: Tokenizer = tokenizer) -> int:
            """Encode the word with its space, which belongs to its first token; the first of a text has none."""
            before = word.text[: word.start]
            return len(
                tokenizer.encode(f" {word.text[word.start : word.end]}" if before else word.text[: word.end]).ids
            )

        numbers = list(map(tokens, training))
        shares = {number: (numbers.count(number) + 0.5) / (len(numbers) + 48) for number in range(1, 97)}
        assert sum(shares.values()) == pytest.approx(1)  # so the description is one
        bits = -sum(math.log2(shares[tokens(word)]) for word in words)
        expected = bits / sum(word.end - word.start for word in words)
        assert token_count_bits_per_byte(tokenizer, words, training, 96) == pytest.approx(expected, rel=1e-12)


def test_sentences_come_evenly_from_all_of_a_text() -> None:
    tokenizer = tokenizer_of(261)
    ids = [tokenizer.encode(f"{n}").ids for n in range(100)]
    tokens, borders = np.concatenate(ids).astype(np.uint16), offsets(list(map(len, ids)))
    split = ShardArrays(tokens, np.ones(len(tokens), np.uint8), borders, np.arange(101))
    assert list(sentences_of([split], tokenizer, most=5)) == ["0", "20", "40", "60", "80"]
    assert list(sentences_of([split], tokenizer)) == [f"{n}" for n in range(100)]


def test_a_word_of_one_token_costs_its_negative_log_probability() -> None:
    tokenizer, model = tokenizer_of(400), model_of(400)
    ids = tokenizer.encode("of the text").ids
    assert [tokenizer.decode([token]) for token in ids] == ["of", " the", " text"]
    seen, segment_mask = (
        torch.tensor([[ids[0], MASK, ids[2]]]),
        SegmentMask.of(torch.ones(1, 3), torch.tensor([[0, 1, 2]]), torch.float32),
    )
    logits_MV = model(seen, segment_mask, torch.tensor([1]))
    nats = torch.nn.functional.cross_entropy(logits_MV, torch.tensor(ids[1:2])).item()
    bits = bits_per_byte(model, tokenizer, [HiddenWord("of the text", 3, 6)], ROW_LENGTH, CPU)
    assert bits == pytest.approx(nats / math.log(2) / 3, rel=1e-5)


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary_for_each_token() -> None:
    tokenizer, model = tokenizer_of(261), model_of(261)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    words = [HiddenWord("한 단어", 2, 4), HiddenWord("a word", 2, 6)]
    # Byte by byte, with the space before each word: 7 pieces for 6 bytes, 5 for 4.
    bits = bits_per_byte(model, tokenizer, words, ROW_LENGTH, CPU)
    assert bits == pytest.approx((7 + 5) * math.log2(261) / (6 + 4), rel=1e-6)


def test_the_same_words_are_chosen_for_every_vocabulary() -> None:
    def chosen(size: int) -> list[HiddenWord]:
        tokenizer = tokenizer_of(size)
        ids = [tokenizer.encode(sentence).ids for sentence in [*ENGLISH, *KOREAN]]
        tokens = np.array([token for sentence in ids for token in sentence], np.uint16)
        split = ShardArrays(
            tokens, np.ones(len(tokens), np.uint8), offsets(list(map(len, ids))), np.arange(len(ids) + 1)
        )
        return choose_words(sentences_of([split], tokenizer), 5, 40)

    assert len(chosen(261)) == 5
    assert chosen(261) == chosen(300) == chosen(400)


def test_the_choice_of_words_does_not_depend_on_the_order_of_sentences() -> None:
    sentences = [*ENGLISH, *KOREAN]
    few = choose_words(iter(sentences), 3, 40)
    assert few == choose_words(iter(sentences[::-1]), 3, 40)
    assert few == choose_words(iter(sentences), 5, 40)[:3]
    assert len(choose_words(iter(sentences), 100, 40)) == len(sentences)


@given(
    st.lists(st.text(st.sampled_from("abé한😀.,"), min_size=1, max_size=9), min_size=1, max_size=12, unique=True),
    st.integers(8, 60),
)
def test_a_window_is_a_word_with_as_much_text_around_it_as_fits(words: list[str], window_bytes: int) -> None:
    def sizes(some: list[str]) -> list[int]:
        return [len(word.encode()) for word in some]

    lettered = [word for word in words if any(map(str.isalnum, word))]
    fitting = [word for word in lettered if len(word.encode()) <= window_bytes]
    chosen = choose_words(iter([" ".join(words)]), 10, window_bytes)
    assert len(chosen) == bool(lettered)
    if lettered and not fitting:  # a piece of a longer one
        assert len(chosen[0].text.encode()) <= window_bytes
        assert any(chosen[0].text[chosen[0].start : chosen[0].end] in word for word in lettered)
        return
    for word in chosen:
        assert word.text[word.start : word.end] in fitting
        assert word.start == 0 or word.text[word.start - 1] == " "
        shown = word.text.split(" ")
        first = words.index(shown[0])
        assert shown == words[first : first + len(shown)]
        room = window_bytes - len(word.text.encode())
        assert room >= 0
        assert all(size + 1 > room for size in sizes(words[:first][-1:] + words[first + len(shown) :][:1]))


def test_words_are_taken_from_both_sides_in_turn() -> None:
    (word,) = choose_words(iter(["! ! ! ! middle ! ! ! !"]), 1, 12)
    assert word == HiddenWord("! ! middle !", 4, 10)


@pytest.mark.parametrize("sentence", ["", "... !", "😀😀 😀", "。" * 50])
def test_a_sentence_without_a_letter_or_digit_is_skipped(sentence: str) -> None:
    assert choose_words(iter([sentence]), 1, 12) == []


@pytest.mark.parametrize("sentence", UNSPACED)
def test_a_word_of_a_script_without_spaces_is_hidden_alone(sentence: str) -> None:
    (word,) = choose_words(iter([sentence]), 1, 96)
    hidden = word.text[word.start : word.end]
    assert word.text in sentence
    assert 90 <= len(word.text.encode()) <= 96  # as much context as fits
    assert len(hidden.encode()) <= 12
    assert any(map(str.isalnum, hidden))


def test_words_of_unicodes_segmentation_are_not_cut() -> None:
    text = "我们用2024年的BERT模型，don't也行。"
    found = {choose_words(iter([text + "好" * n]), 1, 200)[0] for n in range(60)}
    hidden = {word.text[word.start : word.end] for word in found}
    assert {"2024", "BERT", "don't"} <= hidden
    assert all(len(one) == 1 for one in hidden - {"2024", "BERT", "don't"})


def test_a_piece_never_parts_a_letter_from_its_marks() -> None:
    letter = "e\u0301\u0323"  # 5 bytes
    (word,) = choose_words(iter([letter * 100]), 1, 32)
    assert word.text[word.start : word.end] == letter * 3
    assert word.text == letter * 6


def test_pieces_of_long_words_are_chosen_only_where_there_are_too_few_words() -> None:
    sentences = [*DNA, *ENGLISH, *UNSPACED]
    whole = choose_words(iter([*ENGLISH, *UNSPACED]), 10, 96)
    assert choose_words(iter(sentences), len(whole), 96) == whole
    everything = choose_words(iter(sentences), 10, 96)
    assert everything[: len(whole)] == whole
    assert {word.text[word.start : word.end] in "".join(DNA) for word in everything[len(whole) :]} == {True}
    assert len(everything) == len(sentences)


def test_sentences_with_a_long_word_or_a_foreign_name_keep_the_words_of_earlier_versions() -> None:
    url = "https://example.org/" + "a" * 100
    sentences = [
        f"See {url} for it.",
        "The city of 北京 (Beijing) is large, and 東京都 is larger.",
        "Café “Über” — x² °C.",
    ]
    hidden = [word.text[word.start : word.end] for word in choose_words(iter(sentences), 10, 40)]
    assert hidden == ["and", "it.", "“Über”"]


PUBLISHED_TEXTS = ["The cat saw (some) friends, and 3.14 pies.", "Nobody counted it", "고양이가 학교를 보았다."]


@torch.no_grad()
def by_words(model: MaskedLanguageModel, tokenizer: Tokenizer, sentence: str) -> tuple[float, int]:
    """Return the bits and bytes of all words between spaces, the tokens of each found by encoding the words alone."""
    bits, ids, lengths = 0.0, tokenizer.encode(sentence).ids, []
    special = SpecialTokens.of(tokenizer)
    for number, word in enumerate(sentence.split()):
        alone = tokenizer.encode(word if number == 0 else f" {word}", add_special_tokens=False).ids
        lengths.append(len(alone))
    assert sum(lengths) == len(ids) - 2
    begin = 1
    for length in lengths:
        for piece in range(begin, begin + length):
            hidden = range(piece, begin + length)
            seen = torch.tensor([special.mask if place in hidden else token for place, token in enumerate(ids)])[None]
            mask = SegmentMask.of(torch.ones_like(seen).int(), torch.arange(len(ids))[None], torch.float32)
            bits -= model(seen, mask, torch.tensor([[piece]]))[0].double().log_softmax(dim=0)[ids[piece]].item()
        begin += length
    return bits / math.log(2), sum(len(word.encode()) for word in sentence.split())


@pytest.mark.parametrize(
    "name", ["bert", "bert_cased", "roberta", "roberta_prefix", "modernbert", "xlm_roberta", "deberta"]
)
def test_bits_of_every_kind_of_tokenizer_are_counted_over_the_bytes_of_words(name: str) -> None:
    tokenizer = published(name)
    model = model_of(tokenizer.get_vocab_size())
    counted = [by_words(model, tokenizer, sentence) for sentence in PUBLISHED_TEXTS]
    expected = sum(bits for bits, _ in counted) / sum(size for _, size in counted)
    words = list(every_word(PUBLISHED_TEXTS))
    assert bits_per_byte(model, tokenizer, words, ROW_LENGTH, CPU) == pytest.approx(expected, rel=1e-5)


def test_special_tokens_in_a_text_are_plain_text() -> None:
    tokenizer = tokenizer_of(300, cls_sep=True)
    model = model_of(300)
    words = choose_words(iter(["[SEP] ends it and [PAD] fills it.", "[MASK]", "A [CLS] begins"]), 3, 96)
    assert len(words) == 3
    expected = written_out(model, tokenizer, words)
    assert bits_per_byte(model, tokenizer, words, ROW_LENGTH, CPU) == pytest.approx(expected, rel=1e-4)
