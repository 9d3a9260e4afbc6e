"""Fill in blanks: turn text with masks into rows, and scores into words."""

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
from mlm.objectives.masked import compute_logits
from tokenizer.sentences import collapse
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import continuing_text, encode_masked

BLANK = "[MASK]"
"""Stands for a mask in a sentence, whatever the tokenizer's mask token is called, which does so too."""
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

    White space is collapsed as in training texts, and special tokens other than masks are plain text, as there.
    """
    shown = sentence if len(sentence) <= LONGEST_SHOWN else f"{sentence[:LONGEST_SHOWN]}..."
    check_text(sentence, "sentence", mend="give it in UTF-8")
    special = SpecialTokens.of(tokenizer)
    named = collapse(sentence).replace(str(tokenizer.id_to_token(special.mask)), BLANK)
    ids = special.framed(encode_masked(tokenizer, [named], BLANK)[0])
    if special.mask not in ids:
        raise UserError(f"no [MASK] in {shown!r}: write [MASK] where a word is to be filled in")
    if len(ids) > row_length:
        raise UserError(f"the sentence has {len(ids)} tokens, over the model's {row_length}: shorten it ({shown!r})")
    return one_row(ids, special.mask)


def one_row(ids: Sequence[int], mask_id: int) -> Batch:
    """Return a batch of one row, in which each mask is predicted."""
    blanks = [i for i, token in enumerate(ids) if token == mask_id]
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
    logits_MV = compute_logits(model, batch.to(world.device), world).float()
    special = list(SpecialTokens.of(tokenizer).ids)
    logits_MV[:, special] = float("-inf")
    best = logits_MV.softmax(dim=-1).topk(min(top, logits_MV.shape[1] - len(special)))
    return [
        [Guess(continuing_text(tokenizer, [token]), share) for token, share in zip(tokens, probabilities, strict=True)]
        for tokens, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def sample_predictions(model: nn.Module, batch: Batch, tokenizer: Tokenizer, world: World, sentences: int) -> list[str]:
    """Return the first sentences of a held-out batch as text, each blank as [guess] or, where wrong, [guess|truth].

    Targets that masking replaced by other tokens are shown unmasked.
    """
    # Scores and texts of all targets of a large batch would take gigabytes, and seconds.
    batch = batch.chosen((batch.labels_BM != IGNORED).any(dim=1).nonzero().flatten()[: 4 * sentences])
    guesses = guess(model, batch, tokenizer, world, top=1)
    ids, segments = batch.ids_BL.flatten().cpu().numpy().copy(), batch.segments_BL.cpu().numpy()
    rows, length = segments.shape
    predicted = (batch.predicted_BM.cpu() + torch.arange(rows)[:, None] * length).flatten().tolist()
    filled, mask_id = {}, SpecialTokens.of(tokenizer).mask
    for index, best, label in zip(predicted, guesses, batch.labels_BM.flatten().tolist(), strict=True):
        if label != IGNORED and ids[index] == mask_id:
            filled[index] = (best[0].token, continuing_text(tokenizer, [label]))
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
        parts.append(continuing_text(tokenizer, run))
        run = []
        best, truth = filled[index]
        space = " " if truth.startswith(" ") else ""
        parts.append(f"{space}[{best.strip()}]" if best == truth else f"{space}[{best.strip()}|{truth.strip()}]")
    return "".join([*parts, continuing_text(tokenizer, run)]).strip()
