"""The folder in which one process at a time builds shards, and the state from which it resumes after a kill."""

import fcntl
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from configs import Config, UserError
from tokenizer.cleaning import Reason, Side
from tokenizer.shards.format import SIDES, Counts

_DATABASE = "build.sqlite"


class BuildState(Config):
    """The progress of a build, committed in one transaction with the hashes of the texts seen so far."""

    tokenizer_sha256: str
    text_fingerprint: str
    consumed_documents: int = 0
    counts: dict[Side, Counts] = Field(default={side: Counts() for side in SIDES})
    """Valid contents of each side's files; a killed process may have written beyond them."""
    dropped: dict[Reason, int] = Field(default={})
    """Documents or sentences that cleaning dropped, by reason."""

    @property
    def inputs(self) -> tuple[str, str]:
        """Return the hashes of the tokenizer and the text that are built from."""
        return self.tokenizer_sha256, self.text_fingerprint


@contextmanager
def opened(folder: Path, start: BuildState) -> Iterator[tuple[sqlite3.Connection, BuildState]]:
    """Open the database of the build in `folder`, and return it with the state to resume from.

    If the folder belongs to another text or tokenizer than `start`, it is emptied first.
    """
    state = _saved(folder, start)
    if state is None:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with closing(_connected(folder)) as database:
        database.execute("PRAGMA journal_mode = WAL")  # pages beyond the cache reach the disk without a wait
        database.execute("PRAGMA cache_size = -8192")  # 8 MB
        database.execute("CREATE TABLE IF NOT EXISTS state (saved TEXT)")
        yield database, state or start


def commit(database: sqlite3.Connection, state: BuildState) -> None:
    """Save the state and all other changes to the database in one transaction."""
    database.execute("DELETE FROM state")
    database.execute("INSERT INTO state VALUES (?)", (state.model_dump_json(),))
    database.commit()


def finish(folder: Path, output: Path) -> None:
    """Remove the database of the finished build, and rename its folder to `output`."""
    for path in folder.glob(f"{_DATABASE}*"):  # and its journal
        path.unlink()
    folder.rename(output)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold its lock, which ends with the process, however that ends; wait for another holder."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process is at work in {folder}: waiting for it", file=sys.stderr)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor)):
                if any(folder.iterdir()) and not (folder / _DATABASE).exists():
                    raise UserError(
                        f"{folder} is in the way and holds no unfinished build: move it, or name another output"
                    )
                yield
                return
        finally:
            os.close(descriptor)


def _saved(folder: Path, start: BuildState) -> BuildState | None:
    if not (folder / _DATABASE).exists():
        return None
    with closing(_connected(folder)) as database:
        try:
            saved = database.execute("SELECT saved FROM state").fetchone()
        except sqlite3.DatabaseError:  # killed before there was a state, or damaged
            return None
    try:
        state = BuildState.model_validate_json(saved[0]) if saved else start
    except ValidationError:  # of another version, or damaged
        return None
    return state if state.inputs == start.inputs else None


def _connected(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / _DATABASE)
    # The holder of the folder's lock is alone: it needs no memory shared with others, which network disks lack.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    return database
