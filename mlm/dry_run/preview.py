"""Preview the cost and the first rows of a run, without training (`--dry-run`)."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer
from torch import nn

from mlm.build import PretrainComponents, build
from mlm.config import PretrainConfig
from mlm.data.batches import IGNORED, Batch
from mlm.data.corpus import Corpus
from mlm.distributed.device import measure_peak, precision_of, with_precision
from mlm.distributed.world import joined
from mlm.dry_run.projection import ASSUMED_PEAK_SHARE, measure, projection
from mlm.model.attention import SegmentMask
from mlm.model.encoder import EncoderConfig
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives.masked import MaskedLMTask
from mlm.tracking import flops

ROWS_SHOWN = 2


def preview(config: PretrainConfig, tokens: float | None, machines: Sequence[tuple[int, str]]) -> str:
    """Return parameters by part, FLOPs a step, memory, data, time, and the first batch as text with its masks.

    The end projects the costs of `tokens`, or as many as the run's, on `machines`. A tokenizer, shards and counted
    embeddings that are not cached are made; nothing is trained.
    """
    with joined(config.train.silence_minutes, config.device) as world:
        return describe(build(config, with_precision(world, config.train.precision)), tokens, machines)


def describe(made: PretrainComponents, tokens: float | None, machines: Sequence[tuple[int, str]]) -> str:
    """Return the preview of components."""
    config, corpus, task, model, length = made.config, made.corpus, made.task, made.model, made.length
    manifest, rows, world = corpus.manifest, corpus.train, task.world
    parts = parameters_by_part(model)
    batch = task.micro_batches(0, 0.0)[0]
    tokens_per_step = config.train.batch_rows * rows.tokens_per_row
    context = flops.mean_context(rows.segments_per_row)
    per_token = flops.flops_at(config, corpus)(0.5)  # the mean: the masked share changes linearly
    micro_tokens = batch.ids_BL.numel()
    scores = batch.labels_BM.numel() * manifest.vocabulary_size
    kept, encoder = _kept_length(task, batch) if world.device.type == "cpu" else 0, config.model.encoder
    memory = estimate_memory(encoder, parts["total"], micro_tokens, kept, scores, world.dtype.itemsize, made.threads)
    peak = measure_peak(world.device, world.dtype, micro_tokens, encoder.width, encoder.feedforward_width)
    step_seconds = per_token * tokens_per_step / (peak * ASSUMED_PEAK_SHARE)
    steps = length.steps if length.steps is not None else round((length.seconds or 0.0) / step_seconds)
    return "\n".join(
        [
            "parameters",
            *(f"  {part:38}{number:>14,}" for part, number in parts.items()),
            "data",
            f"  {'training documents':38}{manifest.train.documents:>14,}",
            f"  {'training words':38}{manifest.train.words:>14,}",
            f"  {'training tokens':38}{manifest.train.tokens:>14,}",
            f"  {f'rows of {config.data.row_length}':38}{len(rows):>14,}",
            f"  {'slots that are not padding':38}{rows.tokens_per_row / config.data.row_length:>14.2%}",
            f"  {'tokens that a token attends to':38}{context:>14.1f}",
            *(f"  {remark}" for remark in manifest.remarks()),
            f"cost on {world.device}, matrix products in {precision_of(world.dtype)}",
            f"  {'tokens a step':38}{tokens_per_step:>14,.0f}",
            f"  {'FLOPs a step':38}{per_token * tokens_per_step:>14.3g}",
            *(f"  {f'{part} (estimate)':38}{number / 2**20:>10,.0f} MiB" for part, number in memory.items()),
            f"  {'steps':38}{steps:>14,}",
            f"  {'words shown':38}{round(steps * made.step_size.words):>14,}",
            f"  {'epochs':38}{steps / made.step_size.steps_per_epoch:>14.2f}",
            f"  {f'minutes, at {ASSUMED_PEAK_SHARE:.0%} of the measured peak':38}{steps * step_seconds / 60:>14.1f}",
            *projection(measure(made, per_token, peak), tokens or steps * tokens_per_step, machines),
            "first rows: {hidden token>what the model sees}, | between segments",
            *(f"  {_show(batch, row, corpus)}" for row in range(min(ROWS_SHOWN, len(batch.ids_BL)))),
        ]
    )


def _kept_length(task: MaskedLMTask, batch: Batch) -> int:
    """Return the mean number of keys that are computed for a query, those of other segments included."""
    segment_mask = SegmentMask.of(batch.segments_BL, batch.positions_BL, task.world.dtype, compiled=task.compiled)
    key_ranges = [keys for keys, _ in segment_mask.key_blocks] or [slice(0, batch.ids_BL.shape[1])]
    return sum(int(reach.stop - reach.start) for reach in key_ranges) // len(key_ranges)


def _show(batch: Batch, row: int, corpus: Corpus) -> str:
    """Return a row as text, token by token; each is added to the one before it, the hidden one if it is hidden."""
    ids, segments = batch.ids_BL[row].tolist(), batch.segments_BL[row].tolist()
    slots = zip(batch.predicted_BM[row].tolist(), batch.labels_BM[row].tolist(), strict=True)
    labels = {place: label for place, label in slots if label != IGNORED}
    text, before = "", list[int]()
    for column in range(int(np.count_nonzero(segments))):
        if column and segments[column] != segments[column - 1]:
            text, before = text + " | ", []
        seen = added_text(corpus.tokenizer, before, ids[column])
        if column in labels:
            seen = f"{{{added_text(corpus.tokenizer, before, labels[column])}>{seen}}}"
        text += seen
        before = [labels.get(column, ids[column])]
    return text


def added_text(tokenizer: Tokenizer, before: list[int], token: int) -> str:
    """Return the text that a token adds to the one before it; nothing for a token below 0."""
    ids = [before, [*before, token]] if token >= 0 else [[], []]
    shorter, longer = (str(tokenizer.decode(part, skip_special_tokens=False)) for part in ids)
    return longer[len(shorter) :]


def parameters_by_part(model: MaskedLanguageModel) -> dict[str, int]:
    """Return the number of parameters of each part; the output embedding is the token embedding, counted once."""

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    encoder = model.encoder
    parts = {
        "token embeddings (input and output)": count(encoder.embeddings.tokens),
        "other embeddings and their norm": count(encoder.embeddings) - count(encoder.embeddings.tokens),
        "encoder layers": count(encoder.blocks),
        "final norm": count(encoder.final_norm),
        "output transform": count(model.transform),
        "output bias": model.output_bias.numel(),
    }
    return {part: number for part, number in parts.items() if number} | {"total": count(model)}


def estimate_memory(
    config: EncoderConfig, parameters: int, slots: int, kept_length: int, scores: int, number_bytes: int, threads: int
) -> dict[str, int]:
    """Estimate the bytes of a training step, by what they hold.

    Args:
        config: the encoder.
        parameters: parameters of the model; each has a weight and two moments, and for every thread a gradient and a
            copy in low precision.
        slots: those of the rows computed at once.
        kept_length: keys of a query; attention keeps two scores a head for each. 0 on CUDA, which keeps none.
        scores: predicted tokens of a micro-batch times vocabulary size; kept with their gradient, which is scaled.
        number_bytes: bytes of a number in matrix products.
        threads: micro-batches computed at the same time.
    """
    widths = 12 * config.width + (4 if config.gated else 3) * config.feedforward_width
    attention = 2 * config.heads * kept_length
    activations = slots * config.layers * (widths + attention) * number_bytes
    weights = parameters * (12 + threads * (4 + number_bytes % 4))
    return {
        "weights and optimizer": weights,
        "activations": threads * activations,
        "scores of the vocabulary": threads * scores * 3 * number_bytes,
    }
