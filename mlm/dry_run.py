"""Preview the cost and the first rows of a run, without training (`--dry-run`)."""

import numpy as np

from mlm.build import PretrainComponents, build
from mlm.config import PretrainConfig
from mlm.data.batches import IGNORED, Batch
from mlm.data.corpus import Corpus
from mlm.distributed.device import measure_peak, precision_of, with_precision
from mlm.distributed.world import joined
from mlm.model.attention import SegmentMask
from mlm.objectives.masked import MaskedLMTask
from mlm.training import flops

ROWS_SHOWN = 2
ASSUMED_PEAK_SHARE = 0.3


def preview(config: PretrainConfig) -> str:
    """Return parameters by part, FLOPs a step, memory, data, time, and the first batch as text with its masks.

    A tokenizer and shards that are not cached are built; nothing is trained.
    """
    with joined(config.train.silence_minutes) as world:
        return describe(build(config, with_precision(world, config.train.precision)))


def describe(made: PretrainComponents) -> str:
    """Return the preview of components."""
    config, corpus, task, model, length = made.config, made.corpus, made.task, made.model, made.length
    manifest, rows, world = corpus.manifest, corpus.train, task.world
    parts = flops.parameters_by_part(model)
    batch = task.micro_batches(0, 0.0)[0]
    tokens_per_step = config.train.batch_rows * rows.tokens / len(rows)
    context = flops.mean_context(rows.rows)
    per_token = flops.flops_per_token(config.model, manifest.vocabulary_size, context, config.masking.mean_rate)
    micro_tokens = batch.ids_BL.numel()
    scores = batch.labels_BM.numel() * manifest.vocabulary_size
    memory = flops.memory(
        config.model.encoder,
        parts["total"],
        micro_tokens,
        _kept_length(task, batch) if world.device.type == "cpu" else 0,
        scores,
        world.dtype.itemsize,
        made.threads,
    )
    encoder = config.model.encoder
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
            f"  {'slots that are not padding':38}{rows.tokens / (len(rows) * config.data.row_length):>14.2%}",
            f"  {'tokens that a token attends to':38}{context:>14.1f}",
            f"cost on {world.device}, matrix products in {precision_of(world.dtype)}",
            f"  {'tokens a step':38}{tokens_per_step:>14,.0f}",
            f"  {'FLOPs a step':38}{per_token * tokens_per_step:>14.3g}",
            f"  {'weights and optimizer (estimate)':38}{memory.weights_and_optimizer / 2**20:>10,.0f} MiB",
            f"  {'activations (estimate)':38}{memory.activations / 2**20:>10,.0f} MiB",
            f"  {'scores of the vocabulary (estimate)':38}{memory.scores / 2**20:>10,.0f} MiB",
            f"  {'steps':38}{steps:>14,}",
            f"  {'epochs':38}{steps * config.train.batch_rows / len(rows):>14.2f}",
            f"  {f'minutes, at {ASSUMED_PEAK_SHARE:.0%} of the measured peak':38}{steps * step_seconds / 60:>14.1f}",
            *_projection(parts["total"], per_token * tokens_per_step),
            "first rows: {hidden token>what the model sees}, | between segments",
            *(f"  {_show(batch, row, corpus)}" for row in range(min(ROWS_SHOWN, len(batch.ids_BL)))),
        ]
    )


def _kept_length(task: MaskedLMTask, batch: Batch) -> int:
    """Return the mean number of keys that are computed for a query, those of other segments included."""
    segment_mask = SegmentMask.of(batch.segments_BL, batch.positions_BL, task.world.dtype, compiled=task.compiled)
    key_ranges = segment_mask.key_ranges or (slice(0, batch.ids_BL.shape[1]),)
    return sum(int(reach.stop - reach.start) for reach in key_ranges) // len(key_ranges)


def _projection(parameters: int, flops_per_step: float) -> list[str]:
    """Return lines on memory and communication of several GPUs, calculated and not measured."""
    server = flops.H100S
    share = flops.communication_share(parameters, flops_per_step / server.gpus, server, ASSUMED_PEAK_SHARE)
    each = flops.STATE_BYTES * parameters / 2**20
    return [
        f"projected for {server.name}, at {ASSUMED_PEAK_SHARE:.0%} of their peak",
        f"  {'state on each GPU, replicated':38}{each:>10,.0f} MiB",
        f"  {'state on each GPU, sharded':38}{each / server.gpus:>10,.0f} MiB",
        f"  {'sent by each GPU in a step':38}{flops.communicated_bytes(parameters, server.gpus) / 2**20:>10,.0f} MiB",
        f"  {'share of a step, without overlap':38}{share:>14.1%}",
    ]


def _show(batch: Batch, row: int, corpus: Corpus) -> str:
    ids, segments = batch.ids_BL[row].tolist(), batch.segments_BL[row].tolist()
    slots = zip(batch.predicted_BM[row].tolist(), batch.labels_BM[row].tolist(), strict=True)
    labels = {place: label for place, label in slots if label != IGNORED}
    text, previous = "", segments[0]
    decode = corpus.tokenizer.decode
    for column in range(int(np.count_nonzero(segments))):
        if segments[column] != previous:
            text, previous = text + " | ", segments[column]
        seen = decode([ids[column]], skip_special_tokens=False)
        label = labels.get(column, -1)
        text += seen if label < 0 else f"{{{decode([label])}>{seen}}}"
    return text
