"""The table that tests/gpu.sh ends with: the machine, and what became of each part.

Its figures are those that the commands left as JSON or XML. A part whose figure is not there has failed, whatever its
exit code was.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def main() -> None:
    import torch

    work, logs = map(Path, sys.argv[1:])
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    parts, all_well = rows(work, logs, on_gpu=gpu is not None)
    about = {
        "device": gpu or "no CUDA device: in miniature, on the CPU",
        "driver": _driver() if gpu else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
    }
    print("\n".join([*(f"{name:12}  {value}" for name, value in about.items()), "", *parts]))
    sys.exit(0 if all_well else 1)


def rows(work: Path, logs: Path, *, on_gpu: bool) -> tuple[list[str], bool]:
    """Return a line or more for each part that ran, and whether all of them did what they should."""
    figures: dict[str, Callable[[], list[str]]] = {
        "gpu-tests": lambda: tests(work / "gpu-tests.xml", on_gpu),
        "benchmark": lambda: speeds(_json(work / "home/runs/benchmark.json")),
        "pretraining": lambda: losses(_results(work, "pretraining")),
        "fill-mask": lambda: guess(_line(logs / "fill-mask.log")),
        "fine-tuning": lambda: accuracies(_results(work, "fine-tuning")),
        "recipe": lambda: [*losses(_results(work, "recipe")), *bits(_results(work, "recipe"))],
        "pairs": lambda: [grammar(_line(logs / "pairs.log"))],
        "export": lambda: [size(work / "home")],
    }
    ended = {name: rest for name, *rest in map(str.split, (work / "parts").read_text().splitlines())}
    lines, all_well = [f"{'part':12}  result  seconds  figure"], True
    for name in ended:
        figure = figures[name]
        code, seconds = map(int, ended[name])
        try:
            first, *others = figure()
        except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
            code, first, others = code or 1, f"{type(error).__name__}: {error}", []
        all_well = all_well and code == 0
        lines.append(f"{name:12}  {'FAILED' if code else 'ok':6}  {seconds:7}  {first}")
        lines += [f"{'':31}{other}" for other in others]
    return lines, all_well


def tests(report: Path, on_gpu: bool) -> list[str]:
    """Return how many tests passed; on a GPU none may have been skipped."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    ran, skipped, failed = (
        sum(int(suite.attrib[key]) for suite in suites for key in keys)
        for keys in (("tests",), ("skipped",), ("failures", "errors"))
    )
    told = f"{ran - skipped - failed} passed, {skipped} skipped, {failed} failed"
    if on_gpu and (skipped or not ran):
        raise ValueError(f"{told}: on a GPU all are to run")
    return [told]


def speeds(report: dict[str, Any]) -> list[str]:
    """Return the speeds of both sides in each of the benchmark's cases."""
    return [
        f"{case['name']}: {case['ours']['median']:,.0f} {case['unit']}, theirs {case['theirs']['median']:,.0f}, ratio "
        f"{case['ratio']['lowest']:.2f} to {case['ratio']['highest']:.2f}, "
        f"{case['peak_share']:.0%} of {case['peak_flops'] / 1e12:,.3g} TFLOP/s"
        for case in report["cases"]
    ]


def losses(results: dict[str, Any]) -> list[str]:
    """Return the held-out loss beside that of counting pairs of words."""
    loss, bigram = results["heldout"]["loss"], results["baselines"]["bigram"]["loss"]
    return [f"held-out loss {loss:.3f} nats, bigram {bigram:.3f}, {results['tokens_per_second']:,.0f} tokens/s"]


def bits(results: dict[str, Any]) -> list[str]:
    """Return the bits per byte of hidden words, and how often the text was read."""
    return [f"{results['heldout']['bits_per_byte']:.3f} bits per byte, {results['epochs']:.1f} epochs"]


def grammar(found: dict[str, Any]) -> str:
    """Return the accuracy on minimal pairs by both scores."""
    pairs = found["pairs"]
    return f"{pairs['accuracy']:.1%} of {pairs['pairs']:,} pairs, {pairs['accuracy_within_words']:.1%} within words"


def size(home: Path) -> str:
    """Return the size of the exported weights, or that which the run's would have."""
    exported = home / "encoder/model.safetensors"
    if exported.exists():
        return f"{exported.stat().st_size / 2**20:.1f} MiB"
    checkpoints = sorted(home.glob("runs/*-recipe/checkpoints/*/weights.safetensors"))
    if not checkpoints:
        raise LookupError("there is no checkpoint to export")
    return f"not made: {checkpoints[-1].stat().st_size / 2 / 2**20:.0f} MiB in bfloat16"


def guess(found: dict[str, Any]) -> list[str]:
    """Return the first guess of the only blank."""
    (blank,) = found["blanks"]
    return [f"first guess {blank[0]['token']!r}, {blank[0]['probability']:.1%}"]


def accuracies(results: dict[str, Any]) -> list[str]:
    """Return the accuracy on the test part beside that of the most frequent class."""
    ours, majority = results["test"]["accuracy"]["mean"], results["baselines"]["majority"]["accuracy"]["mean"]
    return [f"test accuracy {ours:.3f}, most frequent class {majority:.3f}"]


def _results(work: Path, name: str) -> dict[str, Any]:
    found = list((work / "home/runs").glob(f"*-{name}/results.json"))
    if not found:
        raise LookupError("there are no results")
    return _json(found[0])


def _line(log: Path) -> dict[str, Any]:
    """Return the JSON that is one line of a log."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    if len(lines) != 1:
        raise LookupError(f"{log.name} has {len(lines)} lines of JSON")
    values: dict[str, Any] = json.loads(lines[0])
    return values


def _json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown: nvidia-smi does not say"


if __name__ == "__main__":
    main()
