"""The file of a run's metrics, a record a line, which a full disk costs a record and no training."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlm.tracking.run_directory import METRICS, finite

logger = logging.getLogger(__name__)


class MetricsFile:
    """A run's metrics.jsonl, to which records are appended."""

    def __init__(self, run: Path) -> None:
        """Open the file, or make it."""
        self.run, self.file = run, (run / METRICS).open("ab", buffering=0)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record whole or not at all; numbers that JSON cannot represent are null."""
        with surviving(f"RECORD OF STEP {record['step']}", self.run):
            self._append(json.dumps(finite(record)).encode() + b"\n")

    def close(self) -> None:
        """Close the file; a second call changes nothing."""
        self.file.close()

    def _append(self, line: bytes) -> None:
        end = os.fstat(self.file.fileno()).st_size
        try:
            while line:  # a disk that is nearly full takes a part, and then refuses the rest
                line = line[self.file.write(line) :]
        except OSError:
            os.ftruncate(self.file.fileno(), end)
            raise


@contextmanager
def surviving(name: str, run: Path) -> Iterator[None]:
    """Return a context in which a failing disk does not stop training; a warning says that `name` is lost."""
    try:
        yield
    except OSError as error:
        logger.warning("%s NOT WRITTEN (%s): training continues: make room in %s", name, error, run)
