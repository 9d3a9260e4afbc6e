"""Compare a model with the folder exported from it, as plain transformers loads that."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from configs import UserError
from mlm.interop.hub import read_config, read_tokenizer, read_weights
from mlm.model.attention import SegmentMask
from mlm.model.heads import MaskedLanguageModel
from tokenizer.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_DIFFERENCE = 1e-4
"""Between two implementations in float32; beyond it they are not the same model."""
SENTENCES = 7
"""Number of texts that are single sentences; one more is a run of sentences."""
LONGEST_TOKENS = 512
"""Largest number of tokens of a text: scores over a large vocabulary take much memory."""
PADDED_ROWS = 4
"""Rows of a padded batch, for the same reason."""
OWN_SENTENCES = (
    "The ferry had left before anyone noticed that the dog was still on the pier.",
    "Rain.",
    "In 1987 the bridge carried 41,300 cars a day; today it carries 3.5 times as many.",
    'She asked, "Is that the last one?" and he shrugged (it was not).',
    "Returns the index of the first item that is equal to value, or -1 if there is none.",
    "Das Wetter bleibt kühl, aber die Straßen sind überall trocken.",
    "今日は朝から雨が降っています。",
    "The results of the second trial were published in the same journal a year later, with all of the measurements.",
)
"""Sentences to compare on where a model comes without text."""


@dataclass(frozen=True)
class Differences:
    """The largest differences between a model and its counterpart, in float32."""

    scores: float
    """Of the scores at the real positions of single and padded texts."""
    largest_score: float
    """Largest absolute score, which the differences of scores are to be seen beside."""
    hidden_states: float
    """Of the last hidden states of the same positions."""
    texts: int
    """Number of texts that were compared."""
    heldout: bool
    """True if they are held-out text of the run; False if they are `OWN_SENTENCES`."""


def choose_texts(sentences: Iterable[str], tokenizer: Tokenizer, row_length: int) -> list[str]:
    """Return a run of the first sentences, as long as fits, then some of the sentences; none if none fits a row."""
    most = min(row_length, LONGEST_TOKENS)
    fitting = [text for text in islice(sentences, 1000) if text and len(tokenizer.encode(text).ids) <= most]
    run = ""
    for text in fitting:
        longer = f"{run} {text}".strip()
        if len(tokenizer.encode(longer).ids) > most:
            break
        run = longer
    # From short to long, so that a batch of neighbours is padded.
    ordered = sorted(set(fitting[: 10 * SENTENCES]), key=len)
    return [run, *ordered[:: -(-len(ordered) // SENTENCES)]] if run else []


def compare(
    model: MaskedLanguageModel, tokenizer: Tokenizer, folder: Path, row_length: int, heldout: Iterable[str]
) -> Differences:
    """Return the largest differences between a model on the CPU and the one that transformers loads from `folder`.

    `heldout` sentences are compared, or `OWN_SENTENCES` if there are none, alone and in padded batches, with a token of
    each masked. Raise a UserError if the loaded
    tokenizer gives other ids, or a difference is over `LARGEST_DIFFERENCE`.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

    held_out = choose_texts(heldout, tokenizer, row_length)
    texts = held_out or choose_texts(OWN_SENTENCES, tokenizer, row_length)
    config = read_config(folder)
    special, theirs = SpecialTokens.of(tokenizer), read_tokenizer(folder, config)
    rows = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        if theirs(text)["input_ids"] != ids:
            raise UserError(f"{folder}: transformers encodes {text[:60]!r} otherwise than the run's tokenizer")
        ids[len(ids) // 2] = special.mask
        rows.append(torch.tensor(ids))
    scorer = read_weights(MODEL_FOR_MASKED_LM_MAPPING[type(config)], folder, config)
    encoder = read_weights(MODEL_MAPPING[type(config)], folder, config)
    found = [_compared(model, scorer, encoder, batch, special.pad) for batch in _batches(rows)]
    scores, largest, hidden = torch.tensor(found).amax(dim=0).tolist()  # NaN if any is
    differences = Differences(scores, largest, hidden, len(texts), heldout=bool(held_out))
    if not (scores <= LARGEST_DIFFERENCE and hidden <= LARGEST_DIFFERENCE):
        raise UserError(
            f"the exported model is not the run's: its scores differ by up to {scores:.1e} and its hidden states by up"
            f" to {hidden:.1e}, over {LARGEST_DIFFERENCE:.0e}: nothing is written"
        )
    return differences


def _batches(rows: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Yield each row alone, then all in batches of several."""
    yield from ([row] for row in rows)
    yield from (rows[start : start + PADDED_ROWS] for start in range(0, len(rows), PADDED_ROWS))


@torch.no_grad()
def _compared(
    model: MaskedLanguageModel, scorer: "PreTrainedModel", encoder: "PreTrainedModel", rows: Sequence[Tensor], pad: int
) -> tuple[float, float, float]:
    """Return the largest difference of scores, the largest score, and the largest difference of hidden states."""
    ids_BL = pad_sequence(list(rows), batch_first=True, padding_value=pad)
    lengths_B = torch.tensor([len(row) for row in rows])
    positions_BL = torch.arange(ids_BL.shape[1]).expand(ids_BL.shape)
    is_real_BL = positions_BL < lengths_B[:, None]
    mask = SegmentMask.of(is_real_BL.int(), positions_BL, torch.float32)
    inputs: dict[str, Any] = {"input_ids": ids_BL, "attention_mask": is_real_BL.long()}
    is_real_M = is_real_BL.flatten()
    ours_MV = model(ids_BL, mask, positions_BL)[is_real_M]
    theirs_MV = scorer(**inputs).logits.flatten(0, 1)[is_real_M]
    hidden_MD = model.encoder(ids_BL, mask).flatten(0, 1)[is_real_M]
    their_hidden_MD = encoder(**inputs).last_hidden_state.flatten(0, 1)[is_real_M]
    return (
        (ours_MV - theirs_MV).abs().max().item(),
        ours_MV.abs().max().item(),
        (hidden_MD - their_hidden_MD).abs().max().item(),
    )
