"""A run's directory: its name, lock, environment, metrics and results."""

import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from pydantic import ConfigDict, ValidationError

from configs import Config, UserError, files, section_names
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import DETERMINISM, MANIFEST
from mlm.config import RUNS
from mlm.distributed.device import ComputePrecision, precision_of
from mlm.distributed.world import World

LOCK_SECONDS = 1.0
"""Time after which a locked run is taken to be in use."""
ENVIRONMENT, METRICS, RESULTS, LOCK = "environment.json", "metrics.jsonl", "results.json", ".lock"
SIDES = ("train", "heldout")
"""The sides of the held-out split, each with its own records."""
LINES_BYTES = 1 << 16
"""Bytes of metrics.jsonl that are read at once, from its end."""
PRETRAINING, FINE_TUNING = "pretraining", "fine-tuning"
"""Kinds of runs, in their environment.json."""
CONVERTED_FROM = "converted_from"
"""Key in the environment.json of a run that was converted: the published model, and what was changed in it."""
MOST_DIFF_BYTES = 1_000_000
"""Size of the uncommitted changes beyond which their rest is not recorded."""
OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
"""Variables that make git answer about another repository than that of the folder it is asked in."""
RECORDED_PACKAGES = ("torch", "numpy", "tokenizers", "datasets", "safetensors", "schedulefree", "pydantic")
RECORDED_IF_INSTALLED = ("scikit-learn", "transformers", "peft")

logger = logging.getLogger(__name__)


def create(runs: Path, name: str) -> Path:
    """Make the directory of a new run, named by the time and `name`."""
    runs.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{name}"
    for attempt in range(100):
        path = runs / (stem if attempt == 0 else f"{stem}-{attempt}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise UserError(f"cannot name a new run in {runs}: {stem} and a hundred after it exist")


def newest(runs: Path = Path(RUNS)) -> Path:
    """Return the pretraining run that was started last among those with a whole checkpoint; a UserError if none is."""
    for path in newest_first(runs, PRETRAINING):
        saved = checkpoint.completed(path)
        if any(map(checkpoint.is_whole, saved)):
            return path
        if saved:
            logger.warning("%s is passed over: no checkpoint in it is whole", path)
    raise UserError(f"there is no run with a checkpoint in {runs}: start one by python -m mlm.pretrain")


def newest_first(runs: Path, kind: str) -> Iterator[Path]:
    """Yield the runs of a kind in `runs`, the one that was started last first; whatever else is there is passed over.

    A run has a readable configuration: a folder that is being copied, or whose configuration was removed, is none.
    """
    started = list[tuple[int, Path]]()
    for path in runs.iterdir() if runs.is_dir() else ():
        with suppress(OSError):  # a file, a broken link, a folder that may not be read
            started.append(((path / checkpoint.CONFIG).stat().st_mtime_ns, path))
    for _, path in sorted(started, reverse=True):
        if section_names(path / checkpoint.CONFIG) and is_fine_tuning(path) == (kind == FINE_TUNING):
            yield path


def config_path(path: Path) -> Path:
    """Return the path of a pretraining run's configuration, or raise a UserError if `path` is not such a run."""
    config = path / checkpoint.CONFIG
    if not config.is_file():
        raise UserError(f"{path} is not a run: it has no {checkpoint.CONFIG}")
    if (path / MANIFEST).is_file():
        raise UserError(f"{path} is a checkpoint outside of its run: start a new run from it by start_from={path}")
    if is_fine_tuning(path):
        raise UserError(
            f"{path} is a fine-tuning run, which cannot be resumed: it is finished if it has a report.txt, else repeat"
            " its command, which is in environment.json"
        )
    return config


def is_fine_tuning(path: Path) -> bool:
    """Return whether a run is a fine-tuning run: by its record, or for earlier runs by their config's sections."""
    try:
        kind = read_json(path / ENVIRONMENT).get("kind")
    except UserError:
        kind = None
    return kind == FINE_TUNING if kind else "head" in section_names(path / checkpoint.CONFIG)


def origin(path: Path) -> str | None:
    """Return the name of the published model that a run was converted from; None for a run of pretraining."""
    try:
        record = read_json(path / ENVIRONMENT).get(CONVERTED_FROM)
    except UserError:
        return None
    return str(record["name"]) if isinstance(record, dict) and "name" in record else None


def check_head(path: Path) -> None:
    """Raise a UserError if a run's head is at random weights, because the published encoder that it is has none."""
    try:
        record = read_json(path / ENVIRONMENT).get(CONVERTED_FROM)
    except UserError:  # without such a record a run was trained here
        return
    if isinstance(record, dict) and not record.get("has_head", True):
        raise UserError(
            f"{path} has no trained head, as the published encoder has none: train one by"
            f" python -m mlm.pretrain start_from={path} train.frozen_encoder=true"
        )


def lock(path: Path) -> IO[str]:
    """Lock a run's directory until the returned file is closed or this process ends; a UserError if it is locked."""
    file = (path / LOCK).open("a+", errors="replace")
    locked, until = files.lock(file.fileno(), path), time.monotonic() + LOCK_SECONDS
    while not locked and time.monotonic() < until:  # who asks for the owner holds the lock for a moment
        time.sleep(0.02)
        locked = files.lock(file.fileno(), path)
    if not locked:
        with file:
            file.seek(0)
            owner = file.read().strip() or "unknown"
        raise UserError(f"{path} is in use by another process ({owner}): wait for it, or stop it")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def owner(path: Path) -> str | None:
    """Return the process that holds the lock of a run's directory; None if none does."""
    try:
        file = (path / LOCK).open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    with file:
        return None if files.lock(file.fileno(), path, shared=True) else file.read().strip()


def environment(world: World) -> dict[str, Any]:
    """Return the environment of a run: command, versions, commit and uncommitted changes, device, precision."""
    # An installed copy of this code may lie inside the repository of another project.
    is_tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.orig_argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in RECORDED_PACKAGES}
        | {one.name: one.version for one in metadata.distributions() if one.name in RECORDED_IF_INSTALLED},
        "git_commit": (_git("rev-parse", "HEAD") or "").strip() or None if is_tracked else None,
        "git_diff": _git("diff", "--no-color", "--no-ext-diff", "--no-textconv", "HEAD") if is_tracked else None,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else _processor(),
        "precision": precision_of(world.dtype),
        "determinism": DETERMINISM,
        "processes": world.size,
        "threads": torch.get_num_threads(),
    }


class RunIdentity(Config):
    """The part of a run's environment that must be the same when the run is resumed or evaluated."""

    model_config = ConfigDict(extra="ignore")

    data: dict[str, str]
    """Fingerprints of its text and tokenizer."""
    precision: ComputePrecision
    """Precision of its matrix products."""
    determinism: int = 1
    """`DETERMINISM` of the code that began it, which was not recorded at first."""


def run_identity(path: Path) -> RunIdentity:
    """Return the identity of a run, or raise a UserError if its record is missing, damaged or incomplete."""
    try:
        return RunIdentity.model_validate(read_json(path / ENVIRONMENT))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f'{path / ENVIRONMENT} is damaged at "{first["loc"][0]}": {first["msg"]}: put it back from a copy, or'
            " write the run's first value there"
        ) from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, so that it is complete at every moment."""
    files.write_text(path, json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that `write_json` wrote, or raise a UserError if it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} ({error}): put it back from a copy") from error
    if not isinstance(values, dict):
        raise UserError(f"cannot read {path}: it holds no JSON object")
    return values


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a metrics.jsonl."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def records_newest_first(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the records of a metrics.jsonl, newest first, each with the size of the file up to its end.

    Earlier lines are not read: a long run costs no more than a short one. A half-written last line is skipped, and a
    missing file has no records. Raise a UserError if a line is not a record.
    """
    if not path.exists():
        return
    for line, end in _lines_newest_first(path):
        if line.endswith(b"}\n"):
            try:
                record = json.loads(line)
                _ = record["side"], record["step"] + 0
            except (ValueError, KeyError, TypeError) as error:
                message = f"{path} holds a line that is no record ({error}): mend it, or remove it"
                raise UserError(message) from error
            yield record, end


def _lines_newest_first(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the lines of a file from its end, each with the place behind it; the file is read block by block.

    It is not mapped into memory: another process may cut it, and that would kill this one.
    """
    with path.open("rb") as file:
        begin, content = file.seek(0, os.SEEK_END), b""
        while begin or content:
            cut = content.rfind(b"\n", 0, len(content) - 1) + 1
            if cut or not begin:
                yield content[cut:], begin + len(content)
                content = content[:cut]
                continue
            before = max(begin - LINES_BYTES, 0)
            file.seek(before)
            content, begin = file.read(begin - before) + content, before


def newest_records(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last record of each side in a metrics.jsonl, which may still be written, or raise a UserError."""
    found: dict[str, dict[str, Any]] = {}
    for record, _ in records_newest_first(path):
        found.setdefault(record["side"], record)
        if len(found) == len(SIDES):
            break
    return found


def truncate_records(path: Path, last_step: int) -> None:
    """Truncate a metrics.jsonl after `last_step`, or raise a UserError; a resumed run logs the later steps again."""
    if path.exists():
        os.truncate(path, next((end for record, end in records_newest_first(path) if record["step"] <= last_step), 0))


def finite(values: Any) -> Any:
    """Replace numbers that JSON cannot represent by null."""
    if isinstance(values, Mapping):
        return {name: finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _git(*arguments: str) -> str | None:
    """Return the answer of git about this code, of any bytes and at most so long; None without git or a repository."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    # A hook of git, or a shell, may have named another repository in the environment.
    kept = {name: value for name, value in os.environ.items() if name not in OTHER_REPOSITORY}
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kept) as process:
            assert process.stdout is not None
            answer = process.stdout.read(MOST_DIFF_BYTES + 1)
            process.stdout.close()  # the end of git where it has more to say
    except OSError:
        return None
    if len(answer) > MOST_DIFF_BYTES:
        return f"{answer[:MOST_DIFF_BYTES].decode(errors='replace')}\n(the rest is left out)\n"
    return None if process.returncode else answer.decode(errors="replace")


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
