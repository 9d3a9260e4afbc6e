"""Directories that appear only when complete: a manifest of every file's size and checksum, then a rename."""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from configs import Config, UserError
from configs.files import PARTIAL, sync
from tokenizer.shards.format import FileRecord, record

MANIFEST = "manifest.json"
DETERMINISM = 2
"""Version of everything that decides the numbers of a run: the order of rows, their packing and cut, masks, dropout. A
change that would let a resumed run end differently raises it."""


class Manifest(Config):
    """The files of a checkpoint."""

    step: int
    files: dict[str, FileRecord]
    heldout_loss: float | None = None
    """Held-out loss of these weights in nats; None if they were not evaluated."""
    checksum: str = ""
    """SHA-256 of the rest of the manifest."""

    def sealed(self) -> "Manifest":
        """Return the manifest with its checksum."""
        content = self.model_dump_json(exclude={"checksum"})
        return self.model_copy(update={"checksum": hashlib.sha256(content.encode()).hexdigest()})


def seal(partial: Path, folder: Path, step: int, heldout_loss: float | None = None) -> Manifest:
    """Write a manifest of the files in `partial`, flush all to disk, and rename it to `folder`, or raise an OSError."""
    paths = sorted(path for path in partial.rglob("*") if path.is_file())
    files = {path.relative_to(partial).as_posix(): record(path) for path in paths}
    manifest = Manifest(step=step, files=files, heldout_loss=heldout_loss).sealed()
    (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    for path in (*partial.rglob("*"), partial):
        sync(path)
    if folder.exists():
        remove(folder)
    partial.rename(folder)
    sync(folder.parent)
    return manifest


def remove(folder: Path) -> None:
    """Remove a complete folder, or raise an OSError; if killed in between, nothing is left under its name."""
    aside = folder.with_name(f"{folder.name}.removed{PARTIAL}")
    with suppress(OSError):
        delete(aside)
    folder.rename(aside)
    delete(aside)


def delete(folder: Path) -> None:
    """Delete a folder, or of one that was moved elsewhere the link in its place; or raise an OSError."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def read_manifest(folder: Path) -> Manifest:
    """Return a checkpoint's manifest, or raise a UserError if it is missing or damaged."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} is no checkpoint: it has no {MANIFEST}") from None
    except ValidationError as error:
        raise UserError(f"{folder / MANIFEST} is damaged: {error.errors()[0]['msg']}") from error
    if manifest != manifest.sealed():
        raise UserError(f"{folder / MANIFEST} is damaged: its checksum does not match")
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{folder / MANIFEST} is damaged: it names a file outside of the checkpoint, {name!r}")
    return manifest


def verify(folder: Path, names: Sequence[str]) -> Manifest:
    """Return a checkpoint's manifest; raise a UserError if one of the named files is missing, truncated or changed."""
    manifest = read_manifest(folder)
    for name in names:
        path, expected = folder / name, manifest.files.get(name)
        if expected is None or not path.is_file():
            raise UserError(f"checkpoint {folder} lacks {name}")
        if path.stat().st_size != expected.size_bytes or record(path) != expected:
            raise UserError(f"{path} is truncated or was changed: its checksum is not the manifest's")
    return manifest
