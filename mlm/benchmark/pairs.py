"""The case of minimal pairs: both pseudo-log-likelihoods of their sentences."""

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mlm.benchmark import hf_models
from mlm.benchmark.measure import Case, alternate, times_a_second
from mlm.benchmark.speed import Bench
from mlm.distributed.device import precision_of
from mlm.evaluation.pairs import grammar
from mlm.evaluation.pairs.accuracy import measure_pairs
from mlm.evaluation.pairs.likelihood import Sentence, read_sentences
from mlm.model.heads import MaskedLanguageModel
from mlm.model.initialize import initialize
from tokenizer.special_tokens import SpecialTokens


def pairs(bench: Bench, name: str) -> list[Case]:
    """Judge the embedded pairs by random weights, beside BERT with a batch of copies for each sentence."""
    recipe, corpus, row_length = bench.recipe, bench.corpus, bench.recipe.data.row_length
    size, encoder, chosen = corpus.manifest.vocabulary_size, recipe.model.encoder, grammar.pairs()
    model = MaskedLanguageModel(recipe.model, size, row_length)
    initialize(model, encoder, recipe.train.seed)
    model.eval().to(bench.world.device)
    ours = partial(measure_pairs, model, corpus.tokenizer, chosen, row_length, bench.world)
    texts = dict.fromkeys(text for pair in chosen for text in (pair.good, pair.bad))
    sentences = read_sentences(list(texts), corpus.tokenizer)
    bert: nn.Module = hf_models.bert(encoder, size, row_length)
    bert.eval().to(bench.world.device)
    special = SpecialTokens.of(corpus.tokenizer)
    theirs = partial(judge_one_by_one, bert, sentences, special)
    rates = alternate(
        lambda: len(chosen) * times_a_second(ours, bench.scale.seconds),
        lambda: len(chosen) * times_a_second(theirs, bench.scale.seconds),
        bench.scale.repeats,
    )
    tokens = sum(len(one.tokens) for one in sentences) / len(sentences)
    counted = (
        f"sentences of {tokens:.1f} tokens, each hidden alone and with the later ones of its word; ours in"
        f" {precision_of(bench.world.dtype)}, theirs BERT in float32, a batch of copies for each sentence"
    )
    return [Case.of(name, "pairs/s", counted, *rates)]


@torch.no_grad()
def judge_one_by_one(model: nn.Module, sentences: Sequence[Sentence], special: SpecialTokens) -> Tensor:
    """Return both scores in nats of each sentence, (N, 2), from one batch of copies for each."""
    return torch.stack([_scores(model, sentence, special) for sentence in sentences])


def _scores(model: nn.Module, sentence: Sentence, special: SpecialTokens) -> Tensor:
    ids, before = torch.tensor(special.framed(sentence.tokens)), int(special.adds_cls_sep)
    count = len(sentence.tokens)
    words = list(itertools.accumulate(sentence.starts))
    later_TT = torch.tensor([[i <= j and words[i] == words[j] for j in range(count)] for i in range(count)])
    hidden = torch.zeros(2, count, len(ids), dtype=torch.bool)
    hidden[0, :, before : before + count] = torch.eye(count, dtype=torch.bool)
    hidden[1, :, before : before + count] = later_TT
    device = next(model.parameters()).device
    copies = torch.where(hidden, special.mask, ids).flatten(0, 1).to(device)
    logits: Tensor = model(input_ids=copies).logits.cpu()
    places = torch.arange(count) + before
    log_probabilities = logits.log_softmax(dim=-1).view(2, count, len(ids), -1)
    found: Tensor = log_probabilities[:, range(count), places, ids[places]].sum(dim=1)
    return found
