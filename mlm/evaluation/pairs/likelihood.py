"""The pseudo-log-likelihood of sentences: the sum over their tokens, each hidden in turn."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from mlm.distributed.world import World
from mlm.evaluation.hidden_tokens import Copy, log_probabilities
from tokenizer.cached_encoder import CachedEncoder
from tokenizer.sentences import collapse
from tokenizer.special_tokens import SpecialTokens

_SENTENCES_AT_ONCE = 20_000
"""Sentences whose copies are in memory together."""


class Sentence(NamedTuple):
    """A sentence as a tokenizer reads it."""

    tokens: tuple[int, ...]
    """Its tokens without special ones."""
    starts: tuple[int, ...]
    """1 where a token begins a word, else 0."""


def read_sentences(texts: Sequence[str], tokenizer: Tokenizer) -> list[Sentence]:
    """Return texts as the tokenizer reads them."""
    encoded = CachedEncoder(tokenizer).encode(list(map(collapse, texts)))
    tokens, starts, start, found = encoded.tokens.tolist(), encoded.word_starts.tolist(), 0, []
    for length in encoded.lengths.tolist():
        found.append(Sentence(tuple(tokens[start : start + length]), tuple(starts[start : start + length])))
        start += length
    return found


def pseudo_log_likelihoods(
    model: nn.Module, sentences: Sequence[Sentence], special: SpecialTokens, world: World
) -> Tensor:
    """Return two scores in nats of each sentence, (N, 2), float64.

    The first hides each token alone (Salazar et al. 2020, section 2). The second hides also the later tokens of its
    word, so that a long word does not give itself away (Kauf & Ivanova 2023, "within-word left-to-right").
    """
    scores_N2 = torch.zeros(len(sentences), 2, dtype=torch.float64)
    for start in range(0, len(sentences), _SENTENCES_AT_ONCE):
        copies, places = list[Copy](), list[tuple[int, int, int]]()
        for number, sentence in enumerate(sentences[start : start + _SENTENCES_AT_ONCE], start):
            for alone, rest in _copies(sentence, special):
                places.append((number, len(copies), len(copies) + (rest != alone)))
                copies += [alone] if rest == alone else [alone, rest]
        found = log_probabilities(model, copies, special.mask, world)
        numbers, alone_T, rest_T = torch.tensor(places).T
        scores_N2.index_add_(0, numbers, torch.stack([found[alone_T], found[rest_T]], dim=1))
    return scores_N2


def _copies(sentence: Sentence, special: SpecialTokens) -> Iterator[tuple[Copy, Copy]]:
    """Yield, for each token, the sentence with it hidden, and with the later tokens of its word hidden as well."""
    ids, before = special.framed(sentence.tokens), int(special.adds_cls_sep)
    end = len(sentence.tokens)
    for place in reversed(range(len(sentence.tokens))):
        first = place + before
        yield Copy(ids, first, first + 1), Copy(ids, first, end + before)
        if sentence.starts[place]:
            end = place
