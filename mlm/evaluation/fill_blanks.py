"""Fill in blanks: turn text with [MASK] into rows, and scores into words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from configs import UserError, check_text
from mlm.data.batches import IGNORED, Batch
from mlm.distributed.world import World
from mlm.objectives.masked import score
from tokenizer.sentences import collapse
from tokenizer.vocabulary import CLS, MASK, SEP, SPECIAL_TOKENS, encode_masked

LONGEST_SHOWN = 60
"""Characters of a sentence in a message."""


@dataclass(frozen=True)
class Guess:
    """A token for a blank, with its probability."""

    token: str
    """Its text, with the space before it if it begins a word."""
    probability: float


def read_blanks(sentence: str, tokenizer: Tokenizer, row_length: int) -> Batch:
    """Return a batch of one row; raise a UserError if the sentence has no [MASK], or does not fit a row.

    White space is collapsed as in training texts, and special tokens other than [MASK] are plain text, as there.
    """
    shown = sentence if len(sentence) <= LONGEST_SHOWN else f"{sentence[:LONGEST_SHOWN]}..."
    check_text(sentence, "sentence", mend="give it in UTF-8")
    (ids,) = encode_masked(tokenizer, [collapse(sentence)], SPECIAL_TOKENS[MASK])
    if tokenizer.num_special_tokens_to_add(is_pair=False):
        ids = [CLS, *ids, SEP]
    if MASK not in ids:
        raise UserError(f"no [MASK] in {shown!r}: write [MASK] where a word is to be filled in")
    if len(ids) > row_length:
        raise UserError(f"the sentence has {len(ids)} tokens, over the model's {row_length}: shorten it ({shown!r})")
    return one_row(ids)


def one_row(ids: Sequence[int]) -> Batch:
    """Return a batch of one row, in which each [MASK] is predicted."""
    blanks = [i for i, token in enumerate(ids) if token == MASK]
    return Batch(
        torch.tensor([ids]),
        torch.ones(1, len(ids), dtype=torch.int32),
        torch.arange(len(ids))[None],
        torch.tensor([blanks], dtype=torch.int64),
        torch.full((1, len(blanks)), IGNORED),
        targets=len(blanks),
        tokens=len(ids),
    )


@torch.no_grad()
def guess(model: nn.Module, batch: Batch, tokenizer: Tokenizer, world: World, top: int) -> list[list[Guess]]:
    """Return the `top` most probable tokens of every slot of the batch, most probable first; no special tokens."""
    scores_MV = score(model, batch.to(world.device), world).float()
    scores_MV[:, : len(SPECIAL_TOKENS)] = float("-inf")
    best = scores_MV.softmax(dim=-1).topk(min(top, scores_MV.shape[1] - len(SPECIAL_TOKENS)))
    return [
        [Guess(tokenizer.decode([token]), share) for token, share in zip(tokens, probabilities, strict=True)]
        for tokens, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def sample_predictions(model: nn.Module, batch: Batch, tokenizer: Tokenizer, world: World, sentences: int) -> list[str]:
    """Return the first sentences of a held-out batch as text, each blank as [guess] or, where wrong, [guess|truth].

    Targets that masking replaced by other tokens are shown unmasked.
    """
    guesses = guess(model, batch, tokenizer, world, top=1)
    ids, segments = batch.ids_BL.flatten().cpu().numpy().copy(), batch.segments_BL.cpu().numpy()
    rows, length = segments.shape
    predicted = (batch.predicted_BM.cpu() + torch.arange(rows)[:, None] * length).flatten().tolist()
    filled = {}
    for index, best, label in zip(predicted, guesses, batch.labels_BM.flatten().tolist(), strict=True):
        if label != IGNORED and ids[index] == MASK:
            filled[index] = (best[0].token, tokenizer.decode([label]))
        elif label != IGNORED:
            ids[index] = label
    shown: list[str] = []
    starts = np.nonzero((np.diff(segments, axis=1, prepend=0) != 0) & (segments > 0))
    for row, column in zip(*starts, strict=True):
        if len(shown) == sentences:
            break
        inside = np.flatnonzero(segments[row] == segments[row, column]) + row * length
        if any(int(index) in filled for index in inside):
            shown.append(_fill(inside, ids, filled, tokenizer))
    return shown


def _fill(
    inside: NDArray[np.int64], ids: NDArray[np.int64], filled: dict[int, tuple[str, str]], tokenizer: Tokenizer
) -> str:
    parts, run = [], list[int]()
    for index in inside.tolist():
        if index not in filled:
            run.append(int(ids[index]))
            continue
        parts.append(tokenizer.decode(run, skip_special_tokens=False))
        run = []
        best, truth = filled[index]
        space = " " if truth.startswith(" ") else ""
        parts.append(f"{space}[{best.strip()}]" if best == truth else f"{space}[{best.strip()}|{truth.strip()}]")
    return "".join([*parts, tokenizer.decode(run, skip_special_tokens=False)]).strip()
