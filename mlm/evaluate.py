"""Measure a pretrained encoder on held-out text: by kind of mask, and in bits per byte of hidden words."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from configs import UserError, command
from mlm.build import corpus_of
from mlm.checkpoint import checkpoint
from mlm.config import PretrainConfig
from mlm.data.batches import IGNORED, Batch
from mlm.data.corpus import Corpus
from mlm.distributed.world import World, init_world
from mlm.evaluation import results
from mlm.objectives.masked import heldout_batches, score
from mlm.tracking import run_directory
from tokenizer.vocabulary import MASK

UNITS = ("token", "word", "span")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command.Parser(prog="python -m mlm.evaluate", description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="run directory (default: the newest one in runs/)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    options = parse(arguments)
    path = options.run or run_directory.newest(Path(PretrainConfig().runs))
    folder = checkpoint.newest(path)
    print(f"run: {path}, {folder.name}", file=sys.stderr)
    model, _, recipe = checkpoint.load_model(folder, torch.device("cpu"))
    run_identity = run_directory.run_identity(path)
    world = init_world().with_recorded_precision(run_identity.precision)
    model.to(world.device)
    corpus = corpus_of(recipe, folder / checkpoint.TOKENIZER)
    if run_identity.data.get("text_fingerprint") != corpus.shards.manifest.text_fingerprint:
        raise UserError(
            f"the text of {path} is not what the run was trained on, so no part of it is known to be held out"
        )
    scores = {unit: by_corruption(model, masked_by(unit, recipe, corpus, world), world) for unit in UNITS}
    bits = None
    if recipe.evaluation.words:
        bits = results.measure_bits_per_byte(recipe, corpus, model, world)
    if options.json:
        print(json.dumps({"masks": scores, "bits_per_byte": bits}))
        return
    print(f"{'masked':8}{'seen as':>10}{'targets':>10}{'loss (nats)':>13}{'perplexity':>12}{'accuracy':>10}")
    for unit, kinds in scores.items():
        for kind, s in kinds.items():
            print(
                f"{unit:8}{kind:>10}{s['targets']:>10,}{s['loss']:>13.3f}{s['perplexity']:>12.2f}{s['accuracy']:>10.1%}"
            )
    if bits is not None:
        print(f"\nbits per byte of hidden words: {bits:.3f} ({recipe.evaluation.words} words)")


def masked_by(unit: str, recipe: PretrainConfig, corpus: Corpus, world: World) -> list[Batch]:
    """Mask the held-out rows by tokens, whole words or spans, otherwise as the run did."""
    masking = recipe.masking.model_copy(update={"unit": unit})
    micro = recipe.train.micro_batch_rows or recipe.train.batch_rows
    return heldout_batches(
        corpus.heldout, masking, world, most_rows=recipe.evaluation.most_rows, micro_batch_rows=micro
    )


@torch.no_grad()
def by_corruption(model: nn.Module, batches: Sequence[Batch], world: World) -> Mapping[str, Mapping[str, float]]:
    """Return targets, loss in nats, perplexity and accuracy: of all targets, then by what the model sees there."""
    losses, correct, seen, labels = [], [], [], []
    for batch in batches:
        scores_MV = score(model, batch, world).float()
        labels_M = batch.labels_BM.flatten()
        losses.append(F.cross_entropy(scores_MV, labels_M, reduction="none", ignore_index=IGNORED))
        correct.append(scores_MV.argmax(dim=-1) == labels_M)
        seen.append(batch.ids_BL.gather(1, batch.predicted_BM).flatten())
        labels.append(labels_M)
    loss_M, correct_M, seen_M, labels_M = (torch.cat(parts).cpu() for parts in (losses, correct, seen, labels))
    real_M = labels_M != IGNORED
    kinds = {
        "all": real_M,
        "[MASK]": real_M & (seen_M == MASK),
        "random": real_M & (seen_M != MASK) & (seen_M != labels_M),
        "itself": real_M & (seen_M == labels_M),
    }
    return {
        kind: {
            "targets": int(chosen_M.sum()),
            "loss": loss_M[chosen_M].double().mean().item(),
            "perplexity": loss_M[chosen_M].double().mean().exp().item(),
            "accuracy": correct_M[chosen_M].double().mean().item(),
        }
        for kind, chosen_M in kinds.items()
        if chosen_M.any()
    }


if __name__ == "__main__":
    command.run(main)
