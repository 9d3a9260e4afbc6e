"""Compare hidden states and scores with those of transformers, on real sentences: single, padded and packed."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs import UserError
from mlm.interop import hub
from mlm.interop.published import Published
from mlm.model.attention import SegmentMask
from mlm.model.heads import MaskedLanguageModel

LARGEST = 1e-4
"""The rule of every way in and out: in float32 no hidden state, score or probability may differ by more, whatever its
size. At random weights of RoBERTa-large's shape, scores of up to 28 differ by 3e-5."""
SENTENCES = (
    "The committee will publish its findings on Monday.",
    "She poured the tea before anyone could object, then sat down by the window and watched the rain.",
    "Set the timeout to 30 seconds, or the client closes the connection.",
    "No survivors were found after the earthquake; rescue teams keep searching the northern districts.",
    'What did the old sailor mean by "a following sea"?',
    "Copper conducts heat about five times as well as iron does.",
    "Der Zug nach Marseille f\u00e4hrt um 7.45 Uhr ab.",
    "Yes.",
    "In 1911, after eleven months of marching over ice that nobody had crossed before, the five men planted a flag,"
    " took their bearings three times to be certain, and turned back north with the dogs that were left.",
)
"""Sentences to compare models on."""


@dataclass(frozen=True)
class Difference:
    """The largest difference between two tensors of one kind, over all sentences and layouts."""

    largest: float
    """Largest absolute difference."""
    size: float
    """Largest absolute value of transformers'."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[Tensor, Tensor]]) -> "Difference":
        """Return the largest difference between ours, (N, D), and theirs, which may lack the last columns."""
        found, size = 0.0, 0.0
        for ours, theirs in pairs:
            difference = (ours[:, : theirs.shape[1]] - theirs).abs().max().item()
            found = max(found, difference if math.isfinite(difference) else math.inf)
            size = max(size, theirs.abs().max().item())
        return cls(found, size)

    def __str__(self) -> str:
        return f"{self.largest:.1e} (values up to {self.size:.1f})"


@dataclass(frozen=True)
class Layout:
    """Rows of sentences."""

    ids_BL: Tensor
    segments_BL: Tensor
    positions_BL: Tensor


def check(differences: Mapping[str, Difference], whose: str, remedy: str) -> None:
    """Raise a UserError with the `remedy` if a difference between the two models of `whose` is over `LARGEST`."""
    for kind, difference in differences.items():
        if not difference.largest <= LARGEST:
            raise UserError(
                f"the {kind} of {whose} differ by {difference}, over {LARGEST:.0e}: nothing is written: {remedy}"
            )


Outputs = dict[str, Tensor]
"""`hidden states`, (N, D), and where there is a head `scores`, (N, V), of the N tokens in order, without padding."""
Compute = Callable[[Layout], Outputs]


def compare(
    ours: Compute, theirs: Compute, rows: Sequence[Sequence[int]], pad: int, *, pack: bool = True
) -> dict[str, Difference]:
    """Return the largest differences by the kind of output: of single sentences, padded ones and packed ones."""
    single, padded, packed = layouts(rows, pad)
    alone, together = outputs(theirs, single), outputs(theirs, padded)
    pairs = [(outputs(ours, single), alone), (outputs(ours, padded), together)]
    if pack:
        pairs.append((outputs(ours, packed), alone))
    # Scores of added tokens come last, and have no counterpart.
    return {kind: Difference.of((ours[kind], theirs[kind]) for ours, theirs in pairs) for kind in alone}


def layouts(rows: Sequence[Sequence[int]], pad: int) -> tuple[list[Layout], list[Layout], list[Layout]]:
    """Return the rows one by one, padded to the longest, and packed into one row as segments."""
    single = [Layout(ids, torch.ones_like(ids).int(), torch.arange(ids.shape[1])[None]) for ids in map(_row, rows)]
    longest = max(map(len, rows))
    padded_BL = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in rows])
    real_BL = torch.tensor([[position < len(ids) for position in range(longest)] for ids in rows])
    padded = Layout(padded_BL, real_BL.int(), torch.arange(longest).expand_as(padded_BL))
    packed = Layout(
        torch.cat([batch.ids_BL for batch in single], dim=1),
        torch.cat([batch.segments_BL * number for number, batch in enumerate(single, start=1)], dim=1),
        torch.cat([batch.positions_BL for batch in single], dim=1),
    )
    return single, [padded], [packed]


def _row(ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)])


@torch.no_grad()
def outputs(compute: Compute, batches: Sequence[Layout]) -> Outputs:
    """Return the outputs of all batches, in float32, without those of padding."""
    found = [
        {kind: states_BLX[batch.segments_BL > 0].float() for kind, states_BLX in compute(batch).items()}
        for batch in batches
    ]
    return {kind: torch.cat([one[kind] for one in found]) for kind in found[0]}


def ours(model: MaskedLanguageModel, *, scores: bool, dtype: torch.dtype = torch.float32) -> Compute:
    """Return the function that computes a batch by our model, with scores if asked for."""

    def compute(batch: Layout) -> Outputs:
        every_BL = torch.arange(batch.ids_BL.shape[1]).expand_as(batch.ids_BL)
        segment_mask = SegmentMask.of(batch.segments_BL, batch.positions_BL, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = {"hidden states": model.encoder(batch.ids_BL, segment_mask)}
            if scores:
                found["scores"] = model(batch.ids_BL, segment_mask, every_BL).unflatten(0, batch.ids_BL.shape)
        return found

    return compute


def theirs(published: Published, dtype: torch.dtype = torch.float32) -> Compute:
    """Return the function that computes a batch by transformers, which reads the checkpoint itself."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, MODEL_MAPPING

    mapping: Any = MODEL_FOR_MASKED_LM_MAPPING if published.has_head else MODEL_MAPPING
    config = published.their_config
    model: Any = hub.read_weights(mapping[type(config)], published.folder, config)

    def compute(batch: Layout) -> Outputs:
        given = {"input_ids": batch.ids_BL, "attention_mask": (batch.segments_BL > 0).long()}
        with hub.reading(published.folder), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = {"hidden states": model.base_model(**given).last_hidden_state}
            if published.has_head:
                found["scores"] = model(**given).logits
        return found

    return compute


def differences(published: Published, compute: Compute, longest: int, *, pack: bool = True) -> dict[str, Difference]:
    """Return the largest differences of outputs of a published encoder from transformers' own in float32."""
    rows = sentence_ids(published, longest)
    return compare(compute, theirs(published), rows, pad_of(published), pack=pack)


def pad_of(published: Published) -> int:
    """Return the id of padding by the model, from which RoBERTa tells the positions, or by the tokenizer."""
    pads = (published.their_config.pad_token_id, published.their_tokenizer.pad_token_id, 0)
    return next(int(pad) for pad in pads if pad is not None)


def sentence_ids(published: Published, longest: int) -> list[list[int]]:
    """Return the tokens of the sentences, each at most so many, by the published tokenizer."""
    tokenizer = published.their_tokenizer
    with hub.reading(f"the tokenizer in {published.folder}"):
        ids: list[list[int]] = tokenizer(list(SENTENCES), truncation=True, max_length=longest)["input_ids"]
    return ids
