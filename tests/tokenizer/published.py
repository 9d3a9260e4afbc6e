"""Small tokenizers of every published kind, with the parts that the checkpoints' tokenizer.json files have."""

from collections.abc import Callable, Sequence
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.tokenizer.samples import MIXED, WORDS, prose

TEXTS = (*prose(200), *MIXED, *(text for text, _ in WORDS.values()), *["un able believ the of , . ! ( )"] * 9)
BERT_MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_MARKS = ("<s>", "<pad>", "</s>", "<unk>")


def _framed(tokenizer: Tokenizer, cls: str, sep: str, between: str) -> None:
    special = [(mark, tokenizer.token_to_id(mark)) for mark in (cls, sep)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {between} $B {sep}", special_tokens=special
    )


def _marked(tokenizer: Tokenizer, marks: Sequence[str], mask: str) -> None:
    """Declare special tokens; the mask takes in the space before it where spaces belong to tokens."""
    others = [AddedToken(mark, special=True, normalized=False) for mark in marks if mark != mask]
    lstrip = not isinstance(tokenizer.model, models.WordPiece)
    tokenizer.add_special_tokens([*others, AddedToken(mask, special=True, normalized=False, lstrip=lstrip)])


def bert(*, lowercase: bool = True) -> Tokenizer:
    """Return a tokenizer of BERT, ELECTRA, DistilBERT and MiniLM."""
    tokenizer = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=list(BERT_MARKS), show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    _marked(tokenizer, BERT_MARKS, "[MASK]")
    _framed(tokenizer, "[CLS]", "[SEP]", "[SEP]")
    return tokenizer


def _byte_level(vocabulary: Sequence[str], *, add_prefix_space: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(vocabulary),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return Tokenizer.from_str(tokenizer.to_str())


def roberta(*, add_prefix_space: bool = False) -> Tokenizer:
    """Return a tokenizer of RoBERTa, whose mask stands last in the vocabulary."""
    tokenizer = _byte_level(ROBERTA_MARKS, add_prefix_space=add_prefix_space)
    _marked(tokenizer, [*ROBERTA_MARKS, "<mask>"], "<mask>")
    sep, cls = (("</s>", 2), ("<s>", 0))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, True, add_prefix_space)
    return tokenizer


def modernbert() -> Tokenizer:
    """Return a tokenizer of ModernBERT: added tokens of several spaces and others, and special tokens behind all."""
    tokenizer = _byte_level(["|||IP_ADDRESS|||", "<|padding|>"], add_prefix_space=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken("<|padding|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("|||IP_ADDRESS|||", normalized=True)])
    tokenizer.add_tokens([AddedToken(" " * spaces, normalized=True) for spaces in range(6, 1, -1)])
    tokenizer.add_tokens([AddedToken("|||EMAIL|||", normalized=False), AddedToken("cafe\u0301s", normalized=True)])
    _marked(tokenizer, BERT_MARKS, "[MASK]")
    tokenizer.add_tokens([AddedToken(f"[unused{number}]", normalized=True) for number in range(3)])
    _framed(tokenizer, "[CLS]", "[SEP]", "[SEP]")
    return tokenizer


def _unigram(marks: Sequence[str], unknown: str) -> models.Unigram:
    learning = Tokenizer(models.Unigram())
    learning.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=list(marks), unk_token=unknown, show_progress=False
    )
    learning.train_from_iterator(TEXTS, trainer)
    model: models.Unigram = learning.model
    return model


def xlm_roberta() -> Tokenizer:
    """Return a tokenizer of XLM-R and CamemBERT; their map of characters is about NFKC."""
    tokenizer = Tokenizer(_unigram([*ROBERTA_MARKS, "<mask>"], "<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    _marked(tokenizer, [*ROBERTA_MARKS, "<mask>"], "<mask>")
    _framed(tokenizer, "<s>", "</s>", "</s> </s>")
    return tokenizer


def deberta() -> Tokenizer:
    """Return a tokenizer of DeBERTa-v3, whose spaces belong to the words behind them."""
    tokenizer = Tokenizer(_unigram(BERT_MARKS, "[UNK]"))
    steps = [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(left=False)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    _marked(tokenizer, BERT_MARKS, "[MASK]")
    _framed(tokenizer, "[CLS]", "[SEP]", "[SEP]")
    return tokenizer


def unsplit() -> Tokenizer:
    """Return a tokenizer that reads a text as a single word, so that no chunk of it can be encoded alone."""
    tokenizer = xlm_roberta()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bert": bert,
    "bert_cased": lambda: bert(lowercase=False),
    "roberta": roberta,
    "roberta_prefix": lambda: roberta(add_prefix_space=True),
    "modernbert": modernbert,
    "xlm_roberta": xlm_roberta,
    "deberta": deberta,
    "unsplit": unsplit,
}


@cache
def _serialized(name: str) -> str:
    return KINDS[name]().to_str()


def published(name: str) -> Tokenizer:
    """Return a fresh copy of a published kind, as `vocabulary.load` returns it."""
    tokenizer = Tokenizer.from_str(_serialized(name))
    tokenizer.encode_special_tokens = True
    return tokenizer
