"""Bits per byte of hidden words: a measure that compares models of different vocabularies.

The same words of the same text are hidden one at a time for every vocabulary. The tokens of a hidden word are scored
from left to right, with those to the right still hidden (Kauf & Ivanova 2023, "within-word left to right"). The product
of their probabilities is that of the word, given its number of tokens, which the number of [MASK]s shows. The text is
decoded from tokens: vocabularies that normalise alike are compared on the same words.
"""

import hashlib
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from mlm.data.batches import Batch
from mlm.distributed.world import World
from mlm.objectives.masked import score
from tokenizer.shards.format import ShardArrays
from tokenizer.vocabulary import MASK, PAD

BATCH_ROWS = 64
SENTENCES_READ = 20_000
"""Largest number of held-out sentences read, so that choosing words takes no longer on a larger corpus."""


@dataclass(frozen=True)
class HiddenWord:
    """A word in its context; `text[start:end]` is the word."""

    text: str
    start: int
    end: int


def choose_words(sentences: Iterator[str], words: int, window_bytes: int) -> list[HiddenWord]:
    """Choose the `words` words with the smallest hashes in the first sentences, at most one per sentence, with context.

    A word stands between white space and holds a letter or digit. Words longer than the window are skipped; the text
    around a word is truncated at white space, so that both have at most `window_bytes` bytes of UTF-8 together.
    """
    chosen = heapq.nsmallest(words, _candidates(itertools.islice(sentences, SENTENCES_READ), window_bytes))
    return [_window(split, index, window_bytes) for _, split, index in chosen]


def _candidates(sentences: Iterator[str], window_bytes: int) -> Iterator[tuple[bytes, list[str], int]]:
    for sentence in sentences:
        words = sentence.split()
        hashes = [
            (hashlib.blake2b(f"{i} {sentence}".encode(), digest_size=8).digest(), i)
            for i, word in enumerate(words)
            if any(map(str.isalnum, word)) and len(word.encode()) <= window_bytes
        ]
        if hashes:
            least, index = min(hashes)
            yield least, words, index


def _window(words: Sequence[str], index: int, window_bytes: int) -> HiddenWord:
    """Widen the window by a word on the left, then one on the right, and so on while they fit."""
    first, last, used = index, index + 1, len(words[index].encode())
    widened = True
    while widened:
        widened = False
        if first > 0 and used + len(words[first - 1].encode()) + 1 <= window_bytes:
            first, widened = first - 1, True
            used += len(words[first].encode()) + 1
        if last < len(words) and used + len(words[last].encode()) + 1 <= window_bytes:
            used, last, widened = used + len(words[last].encode()) + 1, last + 1, True
    start = sum(len(word) + 1 for word in words[first:index])
    return HiddenWord(" ".join(words[first:last]), start, start + len(words[index]))


def heldout_sentences(splits: Sequence[ShardArrays], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the sentences of one or several folders as text, one from each in turn."""
    for number in range(max(len(split.sentences) for split in splits) - 1):
        for split in splits:
            if number < len(split.sentences) - 1:
                first, last = split.sentences[number : number + 2]
                yield str(tokenizer.decode(split.tokens[first:last].tolist())).strip()


@torch.no_grad()
def bits_per_byte(
    model: nn.Module, tokenizer: Tokenizer, words: Sequence[HiddenWord], row_length: int, world: World
) -> float:
    """Return the negative log2-likelihood of the hidden words, divided by their UTF-8 bytes."""
    rows = [row for word in words for row in _rows(word, tokenizer, row_length)]
    nats = 0.0
    for start in range(0, len(rows), BATCH_ROWS):
        batch = _batch(rows[start : start + BATCH_ROWS]).to(world.device)
        log_probabilities_MV = score(model, batch, world).float().log_softmax(dim=-1)
        nats -= log_probabilities_MV.gather(1, batch.labels_BM).sum().item()
    return nats / math.log(2) / sum(len(word.text[word.start : word.end].encode()) for word in words)


def _rows(word: HiddenWord, tokenizer: Tokenizer, row_length: int) -> Iterator[tuple[list[int], int, int]]:
    """Yield, for each token of the word: ids with it and the word's later tokens hidden, its position, and its id."""
    encoding = tokenizer.encode(word.text)
    assert len(encoding.ids) <= row_length
    # The space before a word may be part of the word's first token: so it is always hidden.
    offsets = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)  # [CLS] and [SEP] are at 0 to 0
    inside = [i for i, ((first, last), s) in enumerate(offsets) if not s and first < word.end and last >= word.start]
    for position in inside:
        hidden = [MASK if i in inside and i >= position else token for i, token in enumerate(encoding.ids)]
        yield hidden, position, encoding.ids[position]


def _batch(rows: Sequence[tuple[list[int], int, int]]) -> Batch:
    ids_BL = pad_sequence([torch.tensor(ids) for ids, _, _ in rows], batch_first=True, padding_value=PAD)
    lengths_B = torch.tensor([len(ids) for ids, _, _ in rows])
    positions_BL = torch.arange(ids_BL.shape[1]).expand(ids_BL.shape)
    return Batch(
        ids_BL,
        (positions_BL < lengths_B[:, None]).int(),
        positions_BL,
        torch.tensor([[position] for _, position, _ in rows]),
        torch.tensor([[label] for _, _, label in rows]),
        targets=len(rows),
        tokens=int(lengths_B.sum()),
    )
