"""The record of one checkpoint in a run's directory, as far as it is there."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from configs import UserError, read
from mlm.build import RecordedCorpus
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import Manifest, read_manifest
from mlm.config import PretrainConfig
from mlm.evaluation.bits_per_byte import sentences_of
from mlm.tracking import run_directory
from tokenizer import vocabulary
from tokenizer.cache import shards_path
from tokenizer.shards.format import Shards, open_shards, parts_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """The records of a run that tell of one checkpoint; those that are not there are empty."""

    config: PretrainConfig
    manifest: Manifest
    """Of the checkpoint."""
    environment: Mapping[str, Any]
    results: Mapping[str, Any]
    """The results of a finished run, if the checkpoint is its last."""
    progress: Mapping[str, Any]
    """The training metrics of the checkpoint's step."""
    shards: Shards | None
    """The tokens of the run's text; of several folders, the first."""

    @classmethod
    def read(cls, folder: Path, tokenizer: Tokenizer) -> "RunRecord":
        """Return the record of a checkpoint, whose run may be gone; a UserError if a file of it is damaged."""
        run, manifest = checkpoint.run_of(folder), read_manifest(folder)
        config = read(PretrainConfig, folder / checkpoint.CONFIG)
        environment, results = (
            run_directory.read_json(path) if path.exists() else dict[str, Any]()
            for path in (run / run_directory.ENVIRONMENT, run / run_directory.RESULTS)
        )
        progress = dict[str, Any]()
        for record, _ in run_directory.records_newest_first(run / run_directory.METRICS):
            if record["side"] == "train" and record["step"] == manifest.step:
                progress = record
                break
        results = results if results.get("steps") == manifest.step else {}
        shards = None
        if run_directory.CONVERTED_FROM not in environment:
            shards = _shards(config, RecordedCorpus.of(run, folder, environment.get("data", {})), tokenizer)
        return cls(config, manifest, environment, results, progress, shards)

    @property
    def converted_from(self) -> Mapping[str, Any] | None:
        """The record of the published encoder that the model is, if it was not trained here."""
        return self.environment.get(run_directory.CONVERTED_FROM)

    @property
    def has_head(self) -> bool:
        """False if the masked-LM head is at random weights, because a published encoder has none."""
        return self.converted_from is None or bool(self.converted_from.get("has_head", True))

    def begun_from(self) -> str | None:
        """Return the name of the published encoder that training began from, as far as the runs between are at hand."""
        environment = self.environment
        while "started_from" in environment:
            path = checkpoint.run_of(Path(environment["started_from"]["checkpoint"])) / run_directory.ENVIRONMENT
            environment = run_directory.read_json(path) if path.exists() else {}
        name: str | None = environment.get(run_directory.CONVERTED_FROM, {}).get("name")
        return name

    def sentences_of(self, tokenizer: Tokenizer) -> Iterator[str]:
        """Yield the held-out sentences of the run's text; none if it is not at hand."""
        if self.shards is not None:
            yield from sentences_of([self.shards.heldout], tokenizer)


def _shards(config: PretrainConfig, recorded: RecordedCorpus, tokenizer: Tokenizer) -> Shards | None:
    """Return the shards of a run's text, whose text is neither read nor encoded again; None if they are not at hand."""
    path = shards_path(recorded.cache, tokenizer, recorded.fingerprint)
    if config.data.shards is not None:
        path = Path(config.data.shards[0].folders[0])
    try:
        shards = open_shards(next(iter(parts_of(path)), path))
    except UserError as error:
        logger.info("the run's text is not at hand: %s", error)
        return None
    return shards if shards.manifest.tokenizer_sha256 == vocabulary.sha256(tokenizer) else None
