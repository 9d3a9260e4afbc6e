"""Learn a byte-level vocabulary by byte-pair encoding (Sennrich et al. 2016; on bytes, Radford et al. 2019).

Here too: loading of any tokenizer.json, and the tokens of text with masks.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from typing import Literal

from pydantic import Field
from tokenizers import (
    AddedToken,
    Encoding,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from configs import Config, UserError
from tokenizer.kinds import PREFIX_SPACE, fault, plain_reader, without_prefix
from tokenizer.special_tokens import SpecialTokens

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Those of a vocabulary that is learned here, in the order of their ids, 0 to 4; others have ids of their own."""
PAD, UNK, CLS, SEP, MASK = range(5)
# [MASK] takes in the space before it: the predicted token carries its own
_SPECIAL = [AddedToken(token, special=True, normalized=False, lstrip=token == "[MASK]") for token in SPECIAL_TOKENS]
LONGEST_WORD = 1000
"""Characters of a word; a longer one is cut, because learning merges takes time quadratic in its length."""
JOINERS = "\u200c\u200d\u180e\u055b\u055c\u055e\u00ad\u2060\u200e\u200f\u061c"
"""Characters inside of words besides letters, digits and marks: of Persian, Indic, Mongolian and Armenian; the soft
hyphen, the word joiner, and the marks of direction."""
WORD = (
    r"'(?:[sdmt]|ll|ve|re)(?!\p{M})"
    rf"| ?\p{{L}}[\p{{L}}\p{{M}}{JOINERS}]{{0,{LONGEST_WORD - 1}}}[\p{{M}}{JOINERS}]{{0,16}}"  # no cut before a mark
    rf"| ?\p{{N}}[\p{{N}}\p{{M}}{JOINERS}]{{0,{LONGEST_WORD - 1}}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]{{1,{LONGEST_WORD}}}"
    r"|\s+(?!\S)|\s+"
)
"""The pattern of GPT-2, but for combining marks: those belong to the letter, digit or sign before them."""
MINIMUM_SIZE = len(SPECIAL_TOKENS) + 256
MAXIMUM_SIZE = 131_072


class VocabularyConfig(Config):
    """Settings of the vocabulary to learn."""

    size: int = Field(default=2048, ge=MINIMUM_SIZE, le=MAXIMUM_SIZE)
    """Number of tokens: the 5 special ones, the 256 bytes, and the merges learned; 261 has bytes only."""
    normalisation: Literal["none", "nfc", "nfkc"] = "none"
    """The Unicode normalisation of the text before it is encoded; it is saved with the vocabulary."""
    lowercase: bool = False
    """Lower-case the text before it is encoded; it is saved with the vocabulary."""
    add_prefix_space: bool = False
    """Put a space before a text that begins with none, so that its first word has the tokens that it has elsewhere; it
    is saved with the vocabulary."""
    cls_sep: bool = False
    """Put [CLS] before and [SEP] behind every text."""
    training_bytes: int = Field(default=500_000_000, ge=1)
    """Bytes at the beginning of the text that the merges are learned from; more text changes them little."""

    def normalizer(self) -> normalizers.Normalizer | None:
        """Return the normalizer of a tokenizer with these settings, if any."""
        steps: list[normalizers.Normalizer] = []
        if self.normalisation != "none":
            steps.append({"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}[self.normalisation]())
        if self.lowercase:
            steps.append(normalizers.Lowercase())
        return normalizers.Sequence(steps) if steps else None


def learn(texts: Iterator[str], vocabulary: VocabularyConfig) -> Tokenizer:
    """Return a tokenizer of exactly `vocabulary.size` tokens learned from `texts`; a UserError asks for more text.

    As one of `load`, it takes '[MASK]' and the like in a text for plain characters.
    """
    tokenizer = _blank(vocabulary)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary.size,
        min_frequency=2,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    head = filter(None, _head(texts, vocabulary.training_bytes))
    first = next(head, "")
    _train(tokenizer, itertools.chain([first], head), trainer)
    if tokenizer.get_vocab_size() != vocabulary.size:
        if not first:
            raise UserError(
                "the text is empty, or cleaning drops all of it: no training sentence is left: name another source"
            )
        raise UserError(
            f"a corpus too small for the vocabulary: its text gives {tokenizer.get_vocab_size():,} tokens, not "
            f"{vocabulary.size:,}: set vocabulary.size to at most that, or add text"
        )
    tokenizer.encode_special_tokens = True
    return tokenizer


def load(path: Path) -> Tokenizer:
    """Return a saved tokenizer of any known kind, without truncation and padding; raise a UserError for another one.

    It takes '[MASK]' and the like in a text for plain characters: `encode_masked` puts in the masks.
    """
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such tokenizer: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path} is no valid tokenizer.json ({' '.join(str(error).split())})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    try:
        reason = fault(tokenizer)
    except UserError as error:
        reason = str(error)
    if reason is not None:
        raise UserError(f"{path} is no tokenizer that can be used here: {reason}")
    return tokenizer


def encode_masked(tokenizer: Tokenizer, texts: Sequence[str], mask: str) -> list[list[int]]:
    """Return the tokens of texts in which `mask` stands for a mask, without [CLS] and [SEP]; all else is plain text.

    A mask takes in the space before it: the predicted token carries its own.
    """
    mask_id, ids_of_texts = SpecialTokens.of(tokenizer).mask, []
    for first, *others in encode_parts(tokenizer, texts, mask):
        ids = first.ids
        for part in others:
            ids += [mask_id, *part.ids]
        ids_of_texts.append(ids)
    return ids_of_texts


def encode_parts(tokenizer: Tokenizer, texts: Sequence[str], mask: str) -> list[list[Encoding]]:
    """Return the encodings of the parts of each text around its masks, as `encode_masked` reads it.

    A prefix space stands before the first part alone.
    """
    tokenizer.encode_special_tokens = True  # a copy of a loaded one has forgotten it
    parts = [[*map(str.rstrip, before), last] for *before, last in (text.split(mask) for text in texts)]
    encoded = [[first] for first in _encode(tokenizer, [first for first, *_ in parts])]
    behind = iter(_encode(without_prefix(tokenizer), [part for _, *later in parts for part in later]))
    for found, of_text in zip(encoded, parts, strict=True):
        found += itertools.islice(behind, len(of_text) - 1)
    return encoded


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    encoded: list[Encoding] = tokenizer.encode_batch(texts, add_special_tokens=False)
    special = SpecialTokens.of(tokenizer)
    if any(special.found_in(encoding.ids) for encoding in encoded):
        encoded = plain_reader(tokenizer).encode_batch(texts, add_special_tokens=False)
    return encoded


def continuing_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of tokens inside a longer text: with the space before them, if they begin a word."""
    before = tokenizer.encode("a", add_special_tokens=False).ids
    first, both = tokenizer.decode_batch([before, [*before, *ids]], skip_special_tokens=False)
    return str(both[len(first) :])


def serialize(tokenizer: Tokenizer) -> bytes:
    """Return the content of the tokenizer.json: the same tokenizer, the same bytes."""
    return (tokenizer.to_str(pretty=True) + "\n").encode()


def sha256(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the content of the tokenizer.json, in hexadecimal."""
    return hashlib.sha256(serialize(tokenizer)).hexdigest()


def _blank(vocabulary: VocabularyConfig) -> Tokenizer:
    """Return a tokenizer without its bytes, merges and special tokens.

    Training adds the special tokens. If they were there before, it would take '[MASK]' in a text for one.
    """
    tokenizer = Tokenizer(models.BPE())
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(WORD), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.decoder = decoders.ByteLevel()
    if vocabulary.add_prefix_space:
        steps.insert(0, PREFIX_SPACE)
        # The byte-level decoder joins all tokens to one string, which then loses the space before it.
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if normalizer := vocabulary.normalizer():
        tokenizer.normalizer = normalizer
    if vocabulary.cls_sep:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    return tokenizer


def _train(tokenizer: Tokenizer, texts: Iterator[str], trainer: trainers.BpeTrainer) -> None:
    """Learn the merges in another thread: the library hears no Ctrl-C, but this thread does."""
    stopped, all_read = Event(), Event()

    def read() -> Iterator[str]:
        for text in texts:
            if stopped.is_set():
                raise InterruptedError
            yield text
        all_read.set()

    with ThreadPool(1) as pool:
        learned = pool.apply_async(tokenizer.train_from_iterator, (read(), trainer))
        try:
            learned.get()
        except KeyboardInterrupt:
            stopped.set()
            while not (all_read.is_set() or learned.ready()):  # Python must not end while a thread runs its code
                learned.wait(0.01)
            raise


def _head(texts: Iterator[str], limit_bytes: int) -> Iterator[str]:
    """Yield texts of about `limit_bytes`."""
    for text in texts:
        yield text
        limit_bytes -= len(text.encode())
        if limit_bytes <= 0:
            return
