"""The tables of a report as Markdown."""

from collections.abc import Iterator

import pandas

from mlm.sweeps.arms import label, short
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.report.statistics import ArmSummary, Estimate, judge, summarize


def tables(frame: pandas.DataFrame, config: SweepConfig) -> str:
    """Return the table of the arms and the verdict, from the table of the trials alone."""
    arms = summarize(frame, config)
    names = list(dict.fromkeys(name for one in arms for name in one.arm))
    has_stages = any(one.stage for one in arms)
    head = [*(["stage"] if has_stages else []), *map(_short, names), "seeds", f"{config.metric}", "95 % interval"]
    if config.baseline is not None:
        head += ["difference to the baseline", "p"]
    lines = [_row(head), _row(["---"] * len(head))]
    for one in arms:
        row = [*([str(one.stage)] if has_stages else []), *(short(one.arm.get(name, "")) for name in names)]
        row += [f"{one.metric.count if one.metric else 0} of {one.trials}", *_measured(one.metric)]
        lines.append(_row([*row, *(_compared(one) if config.baseline is not None else [])]))
    return "\n".join([*lines, *_verdict(frame, config)])


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _measured(found: Estimate | None) -> list[str]:
    if found is None:
        return ["-", "-"]
    spread = "" if found.std is None else f" ± {found.std:.2g}"
    return [f"{found.mean:.4g}{spread}", interval(found)]


def _compared(one: ArmSummary) -> list[str]:
    if one.difference is None:
        return ["", ""]
    return [
        f"{one.difference.mean:+.3g} ({interval(one.difference)})",
        "-" if one.p_value is None else f"{one.p_value:.2g}",
    ]


def interval(found: Estimate) -> str:
    """Return the interval as text, or the reason why there is none."""
    if found.low is None or found.high is None:
        return "one seed" if found.count == 1 else "no scatter"
    return f"{found.low:.4g} to {found.high:.4g}"


def _verdict(frame: pandas.DataFrame, config: SweepConfig) -> Iterator[str]:
    if config.hypothesis is None:
        return
    judged = judge(frame, config)
    better, than = (label(arm) for arm in (config.hypothesis.better, config.hypothesis.than))
    yield ""
    claim = f"Hypothesis: {better} is better than {than}."
    if judged is None:
        yield f"{claim} No seed is finished in both arms."
        return
    verdict, found = judged
    so_far = " so far" if found.count < len(config.seeds) else ""
    pairs = f"{found.count} of {len(config.seeds)} pairs"
    yield f"{claim} **{verdict.capitalize()}{so_far}**: {found.mean:+.3g} ({interval(found)}) over {pairs}."
