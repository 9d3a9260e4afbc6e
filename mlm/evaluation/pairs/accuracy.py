"""The share of minimal pairs of which a model prefers the good sentence, with its interval."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from configs import UserError, listed
from mlm.distributed.world import World
from mlm.evaluation.pairs.likelihood import Sentence, pseudo_log_likelihoods, read_sentences
from mlm.evaluation.pairs.pair import Pair
from tokenizer.special_tokens import SpecialTokens

SCORES = ("", "_within_words")
"""Endings of the figures' names, by both scores of `pseudo_log_likelihoods`."""
_STANDARD_ERRORS = 1.959964
"""Half of the 95 % interval of a normal distribution."""


def measure_pairs(
    model: nn.Module, tokenizer: Tokenizer, pairs: Sequence[Pair], row_length: int, world: World
) -> dict[str, Any]:
    """Return the accuracy on pairs, on each field's and on each paradigm's, with 95 % intervals over pairs.

    A pair counts 1 if its good sentence has the higher pseudo-log-likelihood, and a half if both have the same. Each
    paradigm has the same weight. `accuracy_within_words` is by the other score of `pseudo_log_likelihoods`. A pair with
    a sentence longer than a row is left out, and counted.

    Raises:
        UserError: no pair fits a row, or a score is not finite.
    """
    special = SpecialTokens.of(tokenizer)
    fitting = those_that_fit(tokenizer, pairs, row_length)
    sides = [good for _, good, _ in fitting], [bad for _, _, bad in fitting]
    distinct = dict.fromkeys(itertools.chain(*sides))  # computed once, so that equal ones score the same
    number_of = {sentence: number for number, sentence in enumerate(distinct)}
    scores_N2 = pseudo_log_likelihoods(model, list(distinct), special, world).numpy()
    if not np.isfinite(scores_N2).all():
        raise UserError("training diverged, the scores of pairs are not finite: lower optim.lr")
    good_P2, bad_P2 = (scores_N2[[number_of[one] for one in side]] for side in sides)
    points_P2 = (good_P2 > bad_P2) + 0.5 * (good_P2 == bad_P2)
    paradigms_P = np.array([pair.paradigm for pair, _, _ in fitting])
    fields_P = np.array([pair.field for pair, _, _ in fitting])

    def by(names_P: NDArray[np.str_]) -> dict[str, dict[str, float]]:
        chosen = {name: names_P == name for name in dict.fromkeys(names_P.tolist()) if name}
        return {name: _accuracy(points_P2[mine_P], paradigms_P[mine_P]) for name, mine_P in chosen.items()}

    return {
        **_accuracy(points_P2, paradigms_P),
        "too_long": len(pairs) - len(fitting),
        "left_out": sorted({pair.paradigm for pair in pairs}.difference(paradigms_P.tolist())),
        "same_tokens": sum(good.tokens == bad.tokens for _, good, bad in fitting),
        "fields": by(fields_P),
        "paradigms": by(paradigms_P),
    }


def those_that_fit(
    tokenizer: Tokenizer, pairs: Sequence[Pair], row_length: int
) -> list[tuple[Pair, Sentence, Sentence]]:
    """Return the pairs whose sentences fit a row, and their good and bad sentences.

    Raises:
        UserError: there are none, or a sentence has no tokens, whose sum would be the highest of all.
    """
    sentences = read_sentences([text for pair in pairs for text in (pair.good, pair.bad)], tokenizer)
    most = row_length - 2 * SpecialTokens.of(tokenizer).adds_cls_sep
    read = list(zip(pairs, sentences[::2], sentences[1::2], strict=True))
    for pair, good, bad in read:
        if not (good.tokens and bad.tokens):
            raise UserError(f"a sentence of the pair {pair.good!r}, {pair.bad!r} has no tokens: mend or remove it")
    fitting = [(pair, good, bad) for pair, good, bad in read if max(len(good.tokens), len(bad.tokens)) <= most]
    if not fitting:
        mend = "name others, or a run with longer rows"
        raise UserError(f"each of the {len(pairs):,} pairs has a sentence of more than {most} tokens: {mend}")
    return fitting


def _accuracy(points_P2: NDArray[np.float64], paradigms_P: NDArray[np.str_]) -> dict[str, float]:
    """Return the mean over paradigms of the points by both scores, with their 95 % intervals.

    That of a paradigm is Wilson's (1927), and that of the mean has their distances recovered from them (Zou & Donner
    2008).
    """
    names, groups_P = np.unique(paradigms_P, return_inverse=True)
    counts_G, squared = np.bincount(groups_P), _STANDARD_ERRORS**2
    found: dict[str, float] = {"pairs": len(points_P2)}
    for points_P, score in zip(points_P2.T, SCORES, strict=True):
        sums_G = np.bincount(groups_P, points_P)
        shares_G = sums_G / counts_G
        centers_G = (sums_G + squared / 2) / (counts_G + squared)
        halves_G = np.sqrt(squared * (shares_G * (1 - shares_G) * counts_G + squared / 4)) / (counts_G + squared)
        accuracy = float(shares_G.mean())
        found[f"accuracy{score}"] = accuracy
        found[f"low{score}"] = accuracy - float(np.linalg.norm(shares_G - centers_G + halves_G)) / len(names)
        found[f"high{score}"] = accuracy + float(np.linalg.norm(centers_G + halves_G - shares_G)) / len(names)
    return found


def report(found: Mapping[str, Any]) -> str:
    """Return measured accuracies as a table: all, fields, and paradigms, the worst last."""
    rows = {"all": found, **found["fields"]}
    ranked = sorted(found["paradigms"].items(), key=lambda one: -one[1]["accuracy"])
    width = max(map(len, [*rows, *found["paradigms"]]))
    lines = [f"{'':{width}}{'pairs':>8}{'accuracy (95 % interval)':>27}{'within words':>27}"]
    for name, of in [*rows.items(), *ranked]:
        by_both = (
            f"{of[f'accuracy{score}']:.1%} ({of[f'low{score}']:.1%} to {of[f'high{score}']:.1%})" for score in SCORES
        )
        lines.append(f"{name:{width}}{of['pairs']:>8,}" + "".join(f"{one:>27}" for one in by_both))
    notes = {
        "too_long": "pairs have a sentence longer than a row and are left out",
        "same_tokens": "pairs have two sentences that are the same to this tokenizer, and count a half",
    }
    lines += [f"{found[name]:,} {note}" for name, note in notes.items() if found[name]]
    if found["left_out"]:
        lines.append(f"no pair fits a row of {listed(found['left_out'])}")
    return "\n".join(lines)
