"""Learn a byte-level vocabulary by byte-pair encoding (Sennrich et al. 2016; on bytes, Radford et al. 2019)."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from configs import Config, UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""In the order of their ids, 0 to 4."""
PAD, UNK, CLS, SEP, MASK = range(5)
# [MASK] takes in the space before it: the predicted token carries its own
_SPECIAL = [AddedToken(token, special=True, normalized=False, lstrip=token == "[MASK]") for token in SPECIAL_TOKENS]
_LONGEST_WORD = 1000
"""Characters; longer words are skipped when merges are learned, which takes time quadratic in a word's length."""
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
    cls_sep: bool = False
    """Put [CLS] before and [SEP] behind every text."""
    training_bytes: int = Field(default=500_000_000, ge=1)
    """Bytes at the beginning of the text that the merges are learned from; more text changes them little."""

    def normalizer(self) -> normalizers.Normalizer | None:
        """Return the normaliser of a tokenizer with these settings, if any."""
        steps: list[normalizers.Normalizer] = []
        if self.normalisation != "none":
            steps.append({"nfc": normalizers.NFC, "nfkc": normalizers.NFKC}[self.normalisation]())
        if self.lowercase:
            steps.append(normalizers.Lowercase())
        return normalizers.Sequence(steps) if steps else None


def learn(texts: Iterator[str], vocabulary: VocabularyConfig) -> Tokenizer:
    """Return a tokenizer of exactly `vocabulary.size` tokens learned from `texts`; a UserError asks for more text."""
    tokenizer = _blank(vocabulary)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary.size,
        min_frequency=2,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    head = _head(texts, vocabulary.training_bytes)
    first = next(head, "")
    tokenizer.train_from_iterator(itertools.chain([first], head), trainer)
    if tokenizer.get_vocab_size() != vocabulary.size:
        if not first:
            raise UserError("the text is empty: after cleaning, no training sentence is left: name another source")
        raise UserError(
            f"a corpus too small for the vocabulary: its text gives {tokenizer.get_vocab_size():,} tokens, not "
            f"{vocabulary.size:,}: set vocabulary.size to at most that, or add text"
        )
    return tokenizer


def load(path: Path) -> Tokenizer:
    """Return a saved tokenizer, without truncation and padding; any but a byte-level one like ours is a UserError."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such tokenizer: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path} is no valid tokenizer.json ({' '.join(str(error).split())})") from error
    if not _is_like_ours(tokenizer):
        raise UserError(
            f"{path} is no byte-level BPE tokenizer with the special tokens {' '.join(SPECIAL_TOKENS)} as ids 0 to 4: "
            "learn one with python -m tokenizer.train"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def serialise(tokenizer: Tokenizer) -> bytes:
    """Return the content of the tokenizer.json: the same tokenizer, the same bytes."""
    return (tokenizer.to_str(pretty=True) + "\n").encode()


def sha256(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the content of the tokenizer.json, in hexadecimal."""
    return hashlib.sha256(serialise(tokenizer)).hexdigest()


def _blank(vocabulary: VocabularyConfig) -> Tokenizer:
    """Return a tokenizer without its bytes, merges and special tokens.

    Training adds the special tokens. If they were there before, it would take '[MASK]' in a text for one.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer := vocabulary.normalizer():
        tokenizer.normalizer = normalizer
    if vocabulary.cls_sep:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    return tokenizer


def _is_like_ours(tokenizer: Tokenizer) -> bool:
    """Return True for a byte-level BPE that encodes any text and has the special tokens as ids 0 to 4."""
    pieces = tokenizer.get_vocab()
    blanks = [_blank(VocabularyConfig(cls_sep=cls_sep)) for cls_sep in (False, True)]
    for blank in blanks:
        blank.add_special_tokens(_SPECIAL)
    complete = {*SPECIAL_TOKENS, *pre_tokenizers.ByteLevel.alphabet()} <= pieces.keys()
    dense = max(pieces.values(), default=0) == len(pieces) - 1
    return complete and dense and _frame(tokenizer) in map(_frame, blanks)


def _frame(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer's settings without the normaliser, the tokens and the merges."""
    parts = json.loads(tokenizer.to_str())
    model = {name: value for name, value in parts["model"].items() if name not in ("vocab", "merges")}
    shared = {name: parts[name] for name in ("added_tokens", "pre_tokenizer", "post_processor", "decoder")}
    return {**shared, "model": model}


def _head(texts: Iterator[str], limit_bytes: int) -> Iterator[str]:
    """Yield texts of about `limit_bytes`, without words so long that learning would be slow and ignore Ctrl-C."""
    for text in texts:
        fits = len(text) <= _LONGEST_WORD
        yield text if fits else " ".join(word for word in text.split(" ") if len(word) <= _LONGEST_WORD)
        limit_bytes -= len(text.encode())
        if limit_bytes <= 0:
            return
