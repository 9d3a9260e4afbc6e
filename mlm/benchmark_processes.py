"""The cases of the benchmark that are measured from outside, each side in a process of its own."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from configs import UserError
from mlm import competition
from mlm.benchmark_cases import Bench
from mlm.comparison import Case, alternate, in_fresh_process

COPIES = (4, 16)
POLL_SECONDS = 0.01


def build_shards(bench: Bench, name: str) -> list[Case]:
    """Tokenise a file, against datasets.map; then several times as much text, to see whether memory grows."""
    tokenizer = bench.corpus.tokenizer_path
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"

        def fresh(function: Callable[[Path, Path, Path], float]) -> Callable[[], tuple[float, int]]:
            return lambda: in_fresh_process(function, text, tokenizer, Path(tempfile.mkdtemp(dir=folder)))

        sides = fresh(build_ours), fresh(competition.map_text)
        megabytes = _write_sentences(bench, text, copies=1) / 1e6
        once = alternate(*sides, bench.scale.repeats)
        more: list[tuple[list[tuple[float, int]], list[tuple[float, int]]]] = []
        for copies in COPIES:
            _write_sentences(bench, text, copies=copies)
            more.append(alternate(*sides, 1))
    counted = "{} in one process of its own; theirs reads the text before its clock starts"
    speeds = [[megabytes / seconds for seconds, _ in side] for side in once]
    memory = [[[peak / 2**20 for _, peak in side] for side in sides] for sides in (once, *more)]
    return [
        Case.of(name, "MB/s", counted.format(f"{megabytes:.1f} MB of text"), *speeds),
        Case.of(f"{name}/memory", "MiB", counted.format("the largest resident memory"), *memory[0]),
        *(
            Case.of(f"{name}/memory-{copies}x", "MiB", counted.format(f"as before, {copies} times the text"), *peaks)
            for copies, peaks in zip(COPIES, memory[1:], strict=True)
        ),
    ]


def build_ours(text: Path, tokenizer_path: Path, folder: Path) -> float:
    """Build the shards of a file of text in this process; return the seconds that it took."""
    from tokenizer import vocabulary
    from tokenizer.build import build
    from tokenizer.sources import Files
    from tokenizer.text import Text

    tokenizer = vocabulary.load(tokenizer_path)
    began = time.perf_counter()
    build(Text(source=Files(paths=(str(text),))), tokenizer, folder / "shards", workers=0)
    return time.perf_counter() - began


def _write_sentences(bench: Bench, path: Path, copies: int) -> int:
    """Write the training sentences, one a line, in numbered copies that are no duplicates; return the bytes."""
    split = bench.corpus.train.split
    bounds = split.sentences[: bench.scale.sentences + 1].tolist()
    sentences = bench.corpus.tokenizer.decode_batch(
        [split.tokens[start:end].tolist() for start, end in pairwise(bounds)]
    )
    with path.open("w", encoding="utf-8") as file:
        for copy in range(copies):
            file.writelines(f"{sentence} {copy}\n" for sentence in sentences)
    return path.stat().st_size


def start_up(bench: Bench, name: str) -> list[Case]:
    """Pretrain from the command to the end of the first step, shards cached, beside `import torch` alone."""
    cache = bench.corpus.shards.path.parent.resolve()

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=bench.output) as runs:
            (Path(runs) / "cache").symlink_to(cache)
            settings = (*bench.overrides, f"runs={runs}", "train.intervals.log_steps=1")
            return seconds_until(lambda: _has_trained(Path(runs)), "-m", "mlm.pretrain", *settings)

    def theirs() -> float:
        return seconds_until(lambda: False, "-c", "import torch")

    counted = (
        "from the command to the record of the first optimiser step, shards cached; theirs: to the end of the import"
    )
    return [Case.of(name, "s", counted, *alternate(ours, theirs, bench.scale.repeats))]


def seconds_until(done: Callable[[], bool], *arguments: str) -> float:
    """Run Python until `done` or until it ends by itself, whichever is first, and return the seconds."""
    with tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while not done() and process.poll() is None:
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - began
        finally:
            process.kill()
            failed = process.wait() > 0
        errors.seek(0)
        if failed:
            raise UserError(f"python {' '.join(arguments)} failed: {errors.read().strip()}")
    return seconds


def _has_trained(runs: Path) -> bool:
    return any('"side": "train"' in path.read_text() for path in runs.glob("*/metrics.jsonl"))
