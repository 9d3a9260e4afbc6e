"""The case of scale: opening, ordering and reading corpora of 10^8 to 10^12 tokens, beside one of 10^8."""

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlm.benchmark.measure import Case, alternate, in_fresh_process
from mlm.data.corpus import corpus_at
from mlm.data.order import RowOrder
from tokenizer.mixture import ShardsConfig
from tokenizer.shards.format import MANIFEST, layout, open_shards
from tokenizer.shards.rows import DOCUMENTS, HEADER, RECORDS, VERSION, RowsHeader, beside, source_of

if TYPE_CHECKING:
    from mlm.benchmark.speed import Bench

SIZES = (10**8, 10**10, 10**12)
SMALLEST = SIZES[0]
OLD_STEP = 10**9
BATCH_ROWS, STEPS, ROWS_AT_ONCE = 32, 100, 50_000
PHASES = ("open", "first batch", f"batch of step {OLD_STEP:.0e}", "first batch of the second epoch")


def scale(bench: "Bench", name: str) -> list[Case]:
    """Measure each size beside the smallest, whose rows are all real; those of larger ones are where they are read.

    A file of a larger corpus is sparse: it has its size, and takes no space where nothing is read.
    """
    cases = list[Case]()
    with tempfile.TemporaryDirectory(dir=bench.output) as folder:
        for size in SIZES:
            write_corpus(bench, Path(folder, str(size)), size)
        for size in SIZES:
            mine, other = (_measurement(bench, Path(folder, str(one))) for one in (size, SMALLEST))
            ours, theirs = alternate(mine, other, bench.scale.repeats)
            counted = f"a corpus of {size:.0e} tokens in rows of {bench.recipe.data.row_length}; theirs: of 1e+08: "
            for quantity, unit, about in QUANTITIES:
                values = [[turn[quantity] for turn in side] for side in (ours, theirs)]
                cases.append(Case.of(f"{name}/{size:.0e}/{quantity}", unit, counted + about, *values))
    return cases


QUANTITIES = (
    *((phase, "s", "seconds from the end of the imports, or of the phase before") for phase in PHASES),
    ("memory", "MiB", "growth of the resident memory from the imports to the end of these phases"),
    ("warm", "tokens/s", f"tokens without padding, laid out and masked in batches of {BATCH_ROWS} rows, read before"),
    ("cold", "tokens/s", "the same, from pages that the system does not hold"),
)


def write_corpus(bench: "Bench", folder: Path, tokens: int) -> None:
    """Write a corpus of so many tokens into `folder`: `shards`, and their rows in `cache`."""
    real, rows_of = bench.corpus.shards[0], bench.corpus.train.files[0]
    row_length, special = bench.recipe.data.row_length, bench.corpus.train.special
    rows = tokens * len(rows_of) // int(rows_of.segment_lengths @ np.arange(row_length + 1))
    shutil.copytree(
        real.path, folder / "shards", ignore=lambda path, names: {name for name in names if "rows-" in name}
    )
    counts = real.manifest.train.model_copy(update={"tokens": tokens, "sentences": rows, "documents": rows})
    files = dict(real.manifest.files)
    for name, (kind, count) in layout("train", real.manifest.token_type, counts).items():
        size = np.dtype(kind).itemsize * count
        os.truncate(folder / "shards" / name, size)
        files[name] = files[name].model_copy(update={"size_bytes": size})
    manifest = real.manifest.model_copy(update={"train": counts, "files": files})
    (folder / "shards" / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    shards = open_shards(folder / "shards")
    segments = rows_of.segment_lengths * rows // len(rows_of)
    header = RowsHeader(
        version=VERSION,
        source=source_of(shards),
        token_type=real.manifest.token_type,
        row_length=row_length,
        rows=rows,
        segment_lengths=tuple(segments.tolist()),
    )
    home = folder / "cache" / f"rows-{header.source:.16}" / beside(shards, "train", row_length, special).name
    home.mkdir(parents=True)
    (home / HEADER).write_text(header.model_dump_json(), encoding="utf-8")
    with (home / DOCUMENTS).open("wb") as file:
        file.truncate(8 * int(segments.sum()))
    order = RowOrder((rows,))
    numbers = np.unique(np.concatenate([order.rows(0, step, BATCH_ROWS)[0] for step in steps_read(rows)]))
    records = rows_of.read(np.arange(len(rows_of)))
    size = records.dtype.itemsize
    with (home / RECORDS).open("wb") as file:
        file.truncate(rows * size)
        for start in range(0, rows if tokens == SMALLEST else 0, len(rows_of)):
            file.write(records[: rows - start].data)
        for row in numbers.tolist():
            os.pwrite(file.fileno(), records[row % len(records)].tobytes(), row * size)
        os.fsync(file.fileno())
    corpus_at(
        [ShardsConfig(folders=(str(folder / "shards"),))], row_length, folder / "cache"
    )  # packs the held-out side


def _measurement(bench: "Bench", folder: Path) -> Callable[[], dict[str, float]]:
    return lambda: in_fresh_process(measure, folder, bench.recipe.data.row_length)[0]


def steps_read(rows: int) -> list[int]:
    """Return the steps whose rows are read: the young ones, an old one, the next epoch, and as many again, cold."""
    second_epoch = -(-rows // BATCH_ROWS)
    return [*range(STEPS), OLD_STEP, second_epoch, *range(second_epoch // 2, second_epoch // 2 + STEPS)]


def measure(folder: Path, row_length: int) -> dict[str, float]:
    """Open the corpus in `folder` and read it; return the quantities. It is called in a process of its own."""
    import torch

    from mlm.data.masking import Masking

    torch.set_num_threads(1)
    masking, found = Masking(), dict[str, float]()
    before, began = resident_bytes(), time.perf_counter()
    corpus = corpus_at([ShardsConfig(folders=(str(folder / "shards"),))], row_length, folder / "cache")
    steps = iter(steps_read(len(corpus.train)))

    def read(step: int) -> int:
        rows_B, epochs_B = corpus.train.order.rows(0, step, BATCH_ROWS)
        return corpus.train.masked(rows_B, epochs_B, masking, masking.rate, 0).tokens

    young = list(itertools.islice(steps, STEPS))
    for phase, step in zip(PHASES, (None, young[0], next(steps), next(steps)), strict=True):
        if step is not None:
            read(step)
        found[phase], began = time.perf_counter() - began, time.perf_counter()
    found["memory"] = (resident_bytes() - before) / 2**20
    for name, wanted in (("warm", young), ("cold", list(steps))):
        if name == "cold":
            (path,) = folder.glob(f"cache/*/*train*/{RECORDS}")
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            for step in wanted:
                read(step)
        began = time.perf_counter()
        found[name] = sum(map(read, wanted)) / (time.perf_counter() - began)
    return found


def resident_bytes() -> int:
    """Return the resident memory of this process, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
