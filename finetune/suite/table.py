"""The table of a suite: an encoder's scores on each task beside those of baselines and of published models."""

import csv
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import UserError
from finetune.evaluation import results
from finetune.evaluation.differences import Difference, mean_difference
from finetune.evaluation.results import MeanStd, aligned

OWN = "this encoder"


def published_scores(suite: Path) -> dict[str, dict[str, float]]:
    """Return the published scores of each model, by task."""
    path, found = suite / "published.csv", dict[str, dict[str, float]]()
    if not path.exists():
        return found
    try:
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            found.setdefault(row["model"], {})[row["task"]] = float(row["score"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: {error!r}: its columns are task, model and score, a number") from error
    return found


def table(folders: Mapping[str, Path], published: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the scores on each task: of the encoder, of its baselines, and of the published models.

    The mean is over the tasks, for whoever has a score on all of them. So is the mean of the encoder's paired
    differences to TF-IDF.
    """
    rows: dict[str, dict[str, Any]] = {}
    differences = list[Difference | None]()
    for task, folder in folders.items():
        found = results.read(folder)
        own = {OWN: found.test, "random encoder": found.baselines.random_encoder, "TF-IDF": found.baselines.tfidf}
        scored = {name: one.get(found.metric) for name, one in own.items() if one is not None}
        others = {name: {"mean": of[task], "std": None} for name, of in published.items() if task in of}
        rows[task] = {
            "metric": found.metric,
            "trials": len(found.trials),
            "scores": {name: score.model_dump() for name, score in scored.items() if score is not None} | others,
        }
        differences.append(_with_freedom(found.baselines.tfidf.difference, len({one.fold for one in found.trials})))
        rows[task]["difference"] = _dumped(differences[-1])
    names = dict.fromkeys(name for row in rows.values() for name in row["scores"])
    columns = {name: [row["scores"].get(name) for row in rows.values()] for name in names}
    means = {name: statistics.fmean(one["mean"] for one in of) for name, of in columns.items() if None not in of}
    known = [one for one in differences if one is not None]
    difference = mean_difference(known) if known and len(known) == len(differences) else None
    return {"tasks": rows, "mean": means, "difference": _dumped(difference)}


def _with_freedom(difference: Difference | None, folds: int) -> Difference | None:
    """Return the difference with its degrees of freedom, which older files lack; over seeds alone it gets none."""
    if difference is None or difference.freedom is not None or folds == 1:
        return difference
    return difference.model_copy(update={"freedom": folds - 1})


def _dumped(difference: Difference | None) -> dict[str, Any] | None:
    return None if difference is None else difference.model_dump()


def as_text(found: Mapping[str, Any]) -> str:
    """Return the table as lines of text."""
    names = list(dict.fromkeys(name for row in found["tasks"].values() for name in row["scores"]))
    lines = [["task", "metric", "trials", *names, "difference to TF-IDF"]]
    for task, row in found["tasks"].items():
        scores = [row["scores"].get(name) for name in names]
        lines.append([task, row["metric"], str(row["trials"]), *map(_shown, scores), _difference(row)])
    means = [f"{found['mean'][name]:.3f}" if name in found["mean"] else "-" for name in names]
    lines.append(["mean", "", "", *means, _difference(found)])
    return aligned(lines)


def _difference(row: Mapping[str, Any]) -> str:
    return "-" if row["difference"] is None else str(Difference.model_validate(row["difference"]))


def _shown(score: Mapping[str, float | None] | None) -> str:
    return "-" if score is None else str(MeanStd.model_validate(score))
