"""The run directory of a converted encoder: that of pretraining before its first step, with nothing to resume."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import dump
from configs.files import PARTIAL, write_text, written_folder
from mlm.checkpoint import checkpoint, weights
from mlm.checkpoint.manifest import seal
from mlm.config import DataConfig, EvaluationConfig, PretrainConfig
from mlm.distributed.world import World
from mlm.interop.conversion import Converted
from mlm.tracking import run_directory
from tokenizer import vocabulary

NAME = "converted"


def write(path: Path, converted: Converted, record: Mapping[str, Any], world: World) -> None:
    """Write a run directory, whole or not at all; `record` tells where the model came from.

    Raises:
        UserError: `path` is there already.
        OSError: the disk is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_folder(path) as partial:
        folder = checkpoint.step_folder(partial, 0)
        inside = folder.with_name(folder.name + PARTIAL)
        inside.mkdir(parents=True)
        text = dump(config_of(path, converted))
        write_text(partial / checkpoint.CONFIG, text)
        write_text(inside / checkpoint.CONFIG, text)
        (inside / checkpoint.TOKENIZER).write_bytes(vocabulary.serialize(converted.tokenizer))
        weights.write(inside / checkpoint.WEIGHTS, weights.host_state_dict(converted.model))
        manifest = seal(inside, folder, 0)
        environment = run_directory.environment(world) | {
            "kind": run_directory.PRETRAINING,
            "data": {"tokenizer_sha256": vocabulary.sha256(converted.tokenizer)},
            run_directory.CONVERTED_FROM: {**record, "weights_sha256": manifest.files[checkpoint.WEIGHTS].sha256},
        }
        run_directory.write_json(partial / run_directory.ENVIRONMENT, environment)


def config_of(path: Path, converted: Converted) -> PretrainConfig:
    """Return the configuration of a run of the converted model."""
    # The window of text around a hidden word fits a row even byte by byte; rows may be shorter than the usual ones.
    fitting = min(EvaluationConfig().window_bytes, converted.row_length - 2)
    evaluation = EvaluationConfig(window_bytes=fitting) if fitting > 8 else EvaluationConfig(words=0)
    return PretrainConfig(
        name=NAME,
        runs=str(path.parent),
        data=DataConfig(row_length=converted.row_length),
        model=converted.published.config,
        evaluation=evaluation,
    )
