"""The folder in which shards are built: one process at a time, which goes on where a killed one was."""

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
    """How far a build is; committed in one transaction with the hashes of the texts seen so far."""

    tokenizer_sha256: str
    text_fingerprint: str
    consumed_documents: int = 0
    counts: dict[Side, Counts] = Field(default={side: Counts() for side in SIDES})
    """What is in each side's files; beyond it they hold the remains of a killed process."""
    dropped: dict[Reason, int] = Field(default={})
    """What cleaning left out, by reason."""

    @property
    def inputs(self) -> tuple[str, str]:
        """Return the hashes of what is built from."""
        return self.tokenizer_sha256, self.text_fingerprint


@contextmanager
def opened(folder: Path, start: BuildState) -> Iterator[tuple[sqlite3.Connection, BuildState]]:
    """Open the database of the build in `folder`, and return it with the state to go on from.

    A folder of another text or tokenizer than `start`'s is emptied first.
    """
    state = _saved(folder, start)
    if state is None:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with closing(_connected(folder)) as database:
        database.execute("PRAGMA journal_mode = WAL")  # what does not fit the cache goes to the disk without a wait
        database.execute("PRAGMA cache_size = -8192")  # 8 MB
        database.execute("CREATE TABLE IF NOT EXISTS state (saved TEXT)")
        yield database, state or start


def commit(database: sqlite3.Connection, state: BuildState) -> None:
    """Save the state and everything else that changed in the database since the last time."""
    database.execute("DELETE FROM state")
    database.execute("INSERT INTO state VALUES (?)", (state.model_dump_json(),))
    database.commit()


def finish(folder: Path, output: Path) -> None:
    """Make the folder of the finished build, without its database, the folder `output`."""
    for path in folder.glob(f"{_DATABASE}*"):  # and what lies beside it
        path.unlink()
    folder.rename(output)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it alone among processes; the lock goes with the process, however it ends."""
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
                    raise UserError(f"{folder} is in the way and no build of ours: move it, or name another output")
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
    # Whoever holds the folder's lock is alone, and needs no memory shared with others, which network disks cannot give.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    return database
