"""The command for machines with a CUDA device runs from end to end, in miniature, and does not hide what failed."""

import gzip
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests import gpu_table
from tests.processes import run

SCRIPT = Path(__file__).with_name("gpu.sh")
PARTS = ("gpu-tests", "benchmark", "pretraining", "fill-mask", "fine-tuning", "recipe", "pairs", "export")
CHEAPEST = ("recipe", "pairs", "export")
"""The parts that are run here, which no other test runs; the others are commands that other tests run."""
LEFT = ("table.txt", "curves.png", "results.json", "pairs.png", "encoder")
"""Files that these leave beside their logs."""


def test_without_a_gpu_parts_run_in_miniature(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["CUDA_VISIBLE_DEVICES"] = ""
    text, pairs = tmp_path / "text.txt.gz", tmp_path / "pairs.zip"
    text.write_bytes(gzip.compress("".join(f"The cats of house {n} see a dog.\n" for n in range(3000)).encode()))
    with zipfile.ZipFile(pairs, "w") as archive:
        archive.writestr("pairs.tsv", "The cats see a dog.\tThe cats sees a dog.\n")
    done = run(["bash", SCRIPT, "", tmp_path / "out", *CHEAPEST, text, pairs], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "table.txt").read_text(encoding="utf-8") == done.stdout
    about, parts = done.stdout.split("\n\n")
    told = dict(line.split(maxsplit=1) for line in about.splitlines())
    assert told["device"].startswith("no CUDA device")
    assert (told["torch"], told["transformers"]) == (torch.__version__, transformers.__version__)
    rows = {name: line for line in parts.splitlines() for name in CHEAPEST if line.startswith(name)}
    assert tuple(rows) == CHEAPEST
    for line in rows.values():
        _, result, seconds, figure = line.split(maxsplit=3)
        assert (result, seconds.isdigit()) == ("ok", True)
        assert any(map(str.isdigit, figure))
    assert "% of 1 pairs" in rows["pairs"]
    assert re.search(r"\d\.\d{3} bits per byte, \d", parts)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*LEFT, *(f"{name}.log" for name in CHEAPEST)}
    exported = load_file(tmp_path / "out" / "encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}


def test_wheels_that_are_not_there_end_the_script(tmp_path: Path) -> None:
    done = run(["bash", SCRIPT, tmp_path])
    assert done.returncode != 0
    assert done.stdout == ""


def test_a_part_that_there_is_not_ends_the_script_before_any_other_runs(tmp_path: Path) -> None:
    command = ["bash", str(SCRIPT), "", str(tmp_path / "out"), "fill-mask", "tests"]
    done = run(command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("there is no part tests: name some of gpu-tests benchmark")
    nothing = run([*command[:-2], str(SCRIPT)])
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("name a part beside the files: some of gpu-tests benchmark")


def test_weights_that_are_too_large_to_be_kept_are_told_by_their_size(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="there is no checkpoint to export"):
        gpu_table.size(tmp_path)
    weights = tmp_path / "runs" / "x-recipe" / "checkpoints" / "step-000000001" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    os.truncate(weights, 372 << 20)
    assert gpu_table.size(tmp_path) == "not made: 186 MiB in bfloat16"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pytest's report on a test that passed and one that was skipped."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "test_two.py").write_text(
        "import pytest\n\ndef test_passes(): pass\n\ndef test_is_skipped(): pytest.skip('so')\n"
    )
    path = folder / "gpu-tests.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_two.py", f"--junitxml={path}"]
    assert run(command, cwd=folder).returncode == 0
    return path


def test_on_a_gpu_no_test_may_be_skipped(report: Path) -> None:
    assert gpu_table.tests(report, on_gpu=False) == ["1 passed, 1 skipped, 0 failed"]
    with pytest.raises(ValueError, match=r"^1 passed, 1 skipped, 0 failed: on a GPU all are to run$"):
        gpu_table.tests(report, on_gpu=True)


def test_what_failed_or_left_no_figure_is_told_and_the_other_parts_are_too(report: Path) -> None:
    work = report.parent
    (work / "parts").write_text("".join(f"{name} {name == 'fill-mask':d} 7\n" for name in PARTS))
    guesses = [{"token": " end", "probability": 0.5}]
    (work / "fill-mask.log").write_text("a warning\n" + json.dumps({"sentence": "The [MASK].", "blanks": [guesses]}))
    (_, *lines), all_well = gpu_table.rows(work, work, on_gpu=False)
    assert not all_well
    assert [line.split(maxsplit=3)[:3] for line in lines] == [
        [name, "ok" if name == "gpu-tests" else "FAILED", "7"] for name in PARTS
    ]
    assert lines[3].endswith("first guess ' end', 50.0%")  # what it did find is shown all the same
    assert lines[4].endswith("there are no results")
    (work / "parts").write_text("gpu-tests 0 7\n")
    (_, line), all_well = gpu_table.rows(work, work, on_gpu=False)
    assert (all_well, line.split()[:2]) == (True, ["gpu-tests", "ok"])  # a part that was not named did not fail
