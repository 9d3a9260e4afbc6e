"""Tell which install command brings an optional package that is missing."""

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from configs import UserError

PROJECT = "mlm"


def require(*packages: str, extra: str, purpose: str) -> None:
    """Raise a UserError with the install command if one of the packages, which `purpose` needs, is not installed."""
    found = {package: importlib.util.find_spec(package) for package in packages}
    # A plain folder of that name in the working directory, such as wandb's records, has no origin.
    if missing := [package for package, spec in found.items() if spec is None or spec.origin is None]:
        raise UserError(f"not installed: {', '.join(missing)}, for {purpose}: pip install {_requirement(extra)}")


def _requirement(extra: str) -> str:
    """Return what pip must be given; pip would fetch a stranger's project of our name if ours is not installed."""
    try:
        distribution(PROJECT)
    except PackageNotFoundError:
        return f"-e '{Path(__file__).resolve().parents[1]}[{extra}]'"
    return f"'{PROJECT}[{extra}]'"
