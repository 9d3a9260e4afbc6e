"""The cases of the benchmark that are measured from outside, each side in a process of its own."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from configs import UserError
from mlm.benchmark import hf_trainer
from mlm.benchmark.measure import Case, alternate, in_fresh_process, largest_child_bytes
from mlm.benchmark.speed import Bench
from tokenizer.shards.workers import default_workers

COPIES = (1, 4, 16)
"""How often the text is written into the file."""
POLL_SECONDS = 0.01


def build_shards(bench: Bench, name: str) -> list[Case]:
    """Tokenise a file, against datasets.map; then several times as much text, to see whether memory grows."""
    tokenizer = bench.corpus.tokenizer_path
    cases: list[Case] = []
    sizes: list[float] = []
    seconds: tuple[list[list[float]], list[list[float]]] = [], []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"

        def side(function: Callable[[Path, Path, Path], tuple[float, int]]) -> tuple[float, float]:
            output = Path(tempfile.mkdtemp(dir=folder))
            (seconds, others), own = in_fresh_process(function, text, tokenizer, output)
            shutil.rmtree(output)
            return text.stat().st_size / 1e6 / seconds, (own + others) / 2**20

        for copies in COPIES:
            megabytes = _write_sentences(bench, text, copies) / 1e6
            sizes.append(megabytes)
            turns = alternate(lambda: side(build_ours), lambda: side(map_theirs), bench.scale.repeats)
            speeds, memory = ([[turn[index] for turn in one] for one in turns] for index in (0, 1))
            label = "" if copies == 1 else f"-{copies}x"
            counted = f"{{}}: {megabytes:.1f} MB of text; ours as shipped, with {default_workers()} other processes"
            speed = counted.format("from the start of the work to its end, but theirs has read the text by then")
            held = counted.format("the largest resident memory, of all processes together")
            cases.append(Case.of(f"{name}{label}", "MB/s", speed, *speeds))
            cases.append(Case.of(f"{name}/memory{label}", "MiB", held, *memory))
            for taken, rates in zip(seconds, speeds, strict=True):
                taken.append([megabytes / rate for rate in rates])
    grown = [[most / least for least, most in zip(taken[0], taken[-1], strict=True)] for taken in seconds]
    counted = (
        f"seconds for the most text over those for the least, of which it is {sizes[-1] / sizes[0]:.1f} times as much"
    )
    return [*cases, Case.of(f"{name}/growth", "times", counted, *grown)]


def build_ours(text: Path, tokenizer_path: Path, folder: Path) -> tuple[float, int]:
    """Build the shards of a file of text; return the seconds, and the bytes that other processes held for it."""
    from tokenizer import vocabulary
    from tokenizer.cleaning import Text
    from tokenizer.shards.build import build
    from tokenizer.sources import Files

    tokenizer = vocabulary.load(tokenizer_path)
    began = time.perf_counter()
    build(Text(source=Files(paths=(str(text),))), tokenizer, folder / "shards")
    return time.perf_counter() - began, default_workers() * largest_child_bytes()


def map_theirs(text: Path, tokenizer_path: Path, folder: Path) -> tuple[float, int]:
    """Map the lines of a file of text by datasets.map; return the seconds, and that there are no other processes."""
    return hf_trainer.map_text(text, tokenizer_path, folder), 0


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
        "from the command to the record of the first optimizer step, shards cached; theirs: to the end of the import"
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
