"""The benchmark runs and counts rightly; what it measures is no test's business."""

import importlib.util
import json
import math
import random
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import UserError
from mlm import benchmark, competition, competition_models
from mlm.benchmark_processes import in_fresh_process
from mlm.comparison import WARMUP_STEPS, Case, Meter, Spread, alternate
from mlm.model.encoder import EncoderConfig
from tests.mlm.samples import ROW_LENGTH, split_of
from tokenizer import vocabulary
from tokenizer.vocabulary import Vocabulary


def text(sentences: int) -> str:
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioulnrst", k=rng.randint(2, 8))) for _ in range(300)]
    return "\n".join(" ".join(rng.choices(words, k=rng.randint(3, 20))) for _ in range(sentences))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the benchmark as a user does, on a small text of his own; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "corpus.txt").write_text(text(2000), encoding="utf-8")
    options = ["--quick", "--repeats", "1", "--text", "corpus.txt", "--vocabulary", "400", "--output", "report"]
    command = [sys.executable, "-m", "mlm.benchmark", *options, "training/one-sentence-a-row", "data/assemble-and-mask"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "report", done.stdout


def test_the_json_holds_what_was_measured_and_on_what(report: tuple[Path, str]) -> None:
    folder, _ = report
    found: dict[str, Any] = json.loads((folder / "benchmark.json").read_text())
    assert {"device", "threads", "command", "precision", "scale", "recipe", "text_fingerprint"} <= set(found)
    assert {"torch", "transformers", "accelerate"} <= set(found["versions"])
    training, data = found["cases"]
    assert (training["name"], data["name"]) == ("training/one-sentence-a-row", "data/assemble-and-mask")
    for case in (training, data):
        for side in ("ours", "theirs", "ratio"):
            assert set(case[side]) == {"median", "lowest", "highest"}
            assert all(0 < value < math.inf for value in case[side].values())
        assert case["unit"] == "tokens/s"
        assert case["counted"]
    assert training["peak_flops"] > 0
    assert 0 < training["peak_share"] < math.inf
    assert data["peak_flops"] is None


def test_the_plot_is_a_png_and_the_table_names_the_cases(report: tuple[Path, str]) -> None:
    folder, printed = report
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "training/one-sentence-a-row" in printed
    assert "data/assemble-and-mask" in printed


def test_the_trainers_tokens_are_those_that_the_attention_masks_mark(tmp_path: Path) -> None:
    # Both sides' speed is tokens without padding: theirs must be what its batches hold, no less and no more.
    lengths = np.random.default_rng(0).integers(1, 2 * ROW_LENGTH, 10).tolist()
    rows = competition.sentences(split_of([lengths]), ROW_LENGTH)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(vocabulary.serialise(vocabulary.learn(iter([text(50)]), Vocabulary(size=300))))
    collate, in_masks, slots, counted = competition.collator(path), [], [], []

    def watched(examples: list[Any]) -> dict[str, Any]:
        batch = collate(examples)
        in_masks.append(int(batch["attention_mask"].sum()))
        slots.append(batch["input_ids"].numel())
        return batch

    def after_step(tokens: int) -> bool:
        counted.append(tokens)
        return len(counted) == 3  # batches of 4, 4 and 2 rows: an epoch

    model = competition_models.bert(EncoderConfig(width=16, heads=2, feedforward_width=24, layers=1), 300, ROW_LENGTH)
    competition.train(model, competition.dataset(rows), watched, 4, bfloat16=False, after_step=after_step)
    assert counted == list(accumulate(in_masks))[:3]
    assert counted[-1] == sum(min(length, ROW_LENGTH) for length in lengths) < sum(slots[:3])


def test_both_ways_of_making_rows_keep_the_text() -> None:
    split = split_of([[5, 30], [7]])
    alone, chunks = competition.sentences(split, ROW_LENGTH), competition.chunks(split, 20)
    assert [row.tolist() for row in alone] == [split.tokens[a:b].tolist() for a, b in ((0, 5), (5, 29), (35, 42))]
    assert [row.tolist() for row in chunks] == [split.tokens[0:20].tolist(), split.tokens[20:40].tolist()]


def test_the_meter_leaves_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("mlm.comparison.time.perf_counter", lambda: now)
    meter = Meter(seconds=10.0, synchronise=lambda: None)
    for step in range(1, WARMUP_STEPS + 1):
        now += 1000.0
        assert not meter.after_step(7 * step)
    now += 4.0
    assert not meter.after_step(7 * WARMUP_STEPS + 100)
    now += 6.0
    assert meter.after_step(7 * WARMUP_STEPS + 300)
    assert meter.finished
    assert meter.rate == 30.0


def test_sides_take_turns_and_the_ratio_is_of_each_turn() -> None:
    order: list[str] = []

    def measure(side: str, result: float) -> float:
        order.append(side)
        return result * len(order)

    sides = alternate(lambda: measure("ours", 2.0), lambda: measure("theirs", 1.0), 3)
    assert order == ["ours", "theirs"] * 3
    case = Case.of("name", "unit", "counted", *sides)
    assert (case.ours, case.theirs) == (Spread(6.0, 2.0, 10.0), Spread(4.0, 2.0, 6.0))
    assert case.ratio == Spread(6 / 4, 2 / 2, 10 / 6)


def test_peak_memory_is_the_fresh_processs_own() -> None:
    size = 100 * 2**20
    ballast = b"x" * (4 * size)  # which a child of ours would show in its ru_maxrss
    (_, little), (length, much) = in_fresh_process(len, b""), in_fresh_process(len, ballast[:size])
    assert length == size
    assert len(ballast) > much >= little + size


def test_unknown_cases_and_missing_packages_are_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean start-up"):
        benchmark.main(["startup"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"transformers, accelerate.*pip install -e '\.\[bench\]'"):
        benchmark.main(["start-up"])
