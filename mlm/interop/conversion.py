"""Turn a published encoder into our model and tokenizer, with added words if wanted, and check that nothing changed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from configs import UserError, listed
from mlm.interop import comparison
from mlm.interop.comparison import Difference
from mlm.interop.published import Published
from mlm.model.heads import MaskedLanguageModel
from mlm.model.initialize import initialize
from tokenizer import kinds
from tokenizer.added_words import add_words
from tokenizer.shards.packing import ROW_LENGTHS
from tokenizer.special_tokens import padded_to

SEED = 0
"""Of the weights of a new head, and of rows of added words that start at random."""
AddedRows = Literal["mean-of-pieces", "mean", "random"]
"""The first values of the row of an added word: the mean of the rows of the pieces that it was cut into before, the
mean of all rows, or random numbers of the deviation of all rows."""


@dataclass(frozen=True)
class Converted:
    """A published encoder as our model, in evaluation mode, with its tokenizer."""

    model: MaskedLanguageModel
    tokenizer: Tokenizer
    row_length: int
    published: Published
    added: tuple[str, ...]
    """Words added to the vocabulary."""


def row_length_of(published: Published, wanted: int | None) -> int:
    """Return the row length: the `wanted` one, or the encoder's; raise a UserError if it is too long."""
    length = published.row_length if wanted is None else wanted
    first, most = ROW_LENGTHS[0], min(published.max_positions, ROW_LENGTHS[-1])
    if not first <= length <= most:
        told = f"{published.folder} has {published.max_positions} positions"
        raise UserError(f"--row-length is {length}: {told}: take {first} to {most}")
    return length


def convert(published: Published, row_length: int) -> Converted:
    """Return our model with the weights of a published one; the head is new if that has none."""
    rows = published.their_config.vocab_size
    config, tensors = published.config, dict(published.tensors)
    backend = getattr(published.their_tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"the tokenizer in {published.folder} has no tokenizer.json: save it as a fast one")
    try:
        tokenizer = Tokenizer.from_str(backend.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer = padded_to(tokenizer, rows)
        fault: object = kinds.fault(tokenizer)
    except UserError as error:
        fault = error
    if fault is not None:
        raise UserError(f"the tokenizer in {published.folder} cannot be used: {fault}")
    model = MaskedLanguageModel(config, rows, row_length)
    initialize(model, config.encoder, SEED)
    name = "encoder.embeddings.positions.weight"
    if name in tensors:
        tensors[name] = tensors[name][:row_length]
    model.load_state_dict(model.state_dict() | tensors)
    return Converted(model.eval(), tokenizer, row_length, published, ())


def with_added_words(converted: Converted, words: Sequence[str], rows: AddedRows) -> Converted:
    """Return the model with rows of embedding and output bias for `words`, which its tokenizer then knows.

    Raise a UserError if the words cannot be added.
    """
    tokenizer, pieces = add_words(converted.tokenizer, words)
    old = converted.model
    model = MaskedLanguageModel(converted.published.config, tokenizer.get_vocab_size(), converted.row_length)
    grown = {
        "encoder.embeddings.tokens.weight": old.encoder.embeddings.tokens.weight.detach(),
        "output_bias": old.output_bias.detach(),
    }
    first_rows = {name: torch.cat([table, FIRST_ROWS[rows](table, pieces)]) for name, table in grown.items()}
    model.load_state_dict(old.state_dict() | first_rows)
    return replace(converted, model=model.eval(), tokenizer=tokenizer, added=tuple(words))


def _mean_of_pieces(table_VX: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([table_VX[list(ids)].mean(dim=0) for ids in pieces])


def _mean(table_VX: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    return table_VX.mean(dim=0).expand(len(pieces), *table_VX.shape[1:])


def _random(table_VX: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(len(pieces), *table_VX.shape[1:], generator=generator) * table_VX.std()


FIRST_ROWS: Mapping[AddedRows, Callable[[Tensor, Sequence[Sequence[int]]], Tensor]] = {
    "mean-of-pieces": _mean_of_pieces,
    "mean": _mean,
    "random": _random,
}
"""Functions from a table of rows, and the pieces that each added word was cut into before, to the words' rows."""


def differences(converted: Converted, dtype: torch.dtype = torch.float32) -> dict[str, Difference]:
    """Return the largest differences of our model, which computes in `dtype`, from transformers' in float32."""
    published = converted.published
    ours = comparison.ours(converted.model, scores=published.has_head, dtype=dtype)
    return comparison.differences(published, ours, converted.row_length)


def check(converted: Converted) -> dict[str, Difference]:
    """Return the differences in float32; raise a UserError if one is over `comparison.LARGEST`."""
    found = differences(converted)
    comparison.check(found, f"{converted.published.folder} in our layers and in transformers", "report the checkpoint")
    return found


def record(
    converted: Converted, name: str, revision: str | None, differences: Mapping[str, Difference]
) -> dict[str, Any]:
    """Return what a run records of its origin."""
    published = converted.published
    return {
        "name": name,
        "revision": revision,
        "folder": str(published.folder.resolve()),
        "model_type": published.model_type,
        "has_head": published.has_head,
        "remarks": list(published.remarks),
        "largest_differences": {kind: difference.largest for kind, difference in differences.items()},
        "added_words": list(converted.added),
    }


def summary(converted: Converted, run: Path, differences: Mapping[str, Difference]) -> list[str]:
    """Return the figures of a conversion, and the commands that come next."""
    published, encoder = converted.published, converted.published.config.encoder
    shape = f"{encoder.layers} layers, width {encoder.width}, rows of {converted.row_length} tokens"
    lines = [f"{run}: {published.model_type}, {shape}, {converted.tokenizer.get_vocab_size():,} tokens"]
    if converted.added:
        lines.append(f"  words added: {len(converted.added):,}: {listed(converted.added)}")
    lines += [
        f"  largest difference of {kind} from transformers', on {len(comparison.SENTENCES)} sentences: {difference}"
        for kind, difference in differences.items()
    ]
    text = 'text.source.kind=files "text.source.paths=[YOUR.txt]"'
    settings = " optim.lr=2e-4"  # the default is one for random weights
    if not published.has_head:
        lines.append("  it had no masked-LM head: a new one is at random weights: train it first, the encoder frozen")
        settings = " train.frozen_encoder=true"
    lines.append(f"next: python -m mlm.pretrain start_from={run}{settings} {text}")
    lines.append(f"      python -m finetune.linear_head encoder.run={run} ...")
    if published.has_head:
        lines.append(f'      python -m mlm.fill_mask --run {run} "This is a [MASK]."')
    return lines
