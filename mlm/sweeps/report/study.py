"""The tables and pictures of a study's page, rebuilt from the small files that are kept of its sweeps."""

import re
from pathlib import Path

import pandas

from configs import UserError, read, recipes
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.report import plots, table
from mlm.sweeps.report.text import tables

_REGION = re.compile(
    r"(?P<begin><!-- table: (?P<name>[\w./-]+)(?P<overrides>( [^\s=]+=\S+)*) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)


def filled(page: str, folder: Path) -> str:
    """Return a page with each region `<!-- table: NAME --> ... <!-- end -->` made anew from NAME.csv in `folder`.

    Behind the name may stand settings of the sweep, such as `metric=heldout.accuracy mode=max`. Another metric than the
    sweep's own gets no verdict, because the hypothesis was stated of that one alone.
    """

    def table_of(found: re.Match[str]) -> str:
        return f"{found['begin']}{tables(*_kept(found, folder))}\n{found['end']}"

    if len(_REGION.findall(page)) != (count := page.count("<!-- table: ")):
        raise UserError(
            f"{count - len(_REGION.findall(page))} of the page's {count} tables have not the form of"
            " <!-- table: NAME SETTING=VALUE ... -->, a line, and <!-- end -->: mend them"
        )
    return _REGION.sub(table_of, page)


def draw(page: str, folder: Path) -> None:
    """Draw the metric of each table by each searched setting, into the folder NAME in `folder`."""
    for found in _REGION.finditer(page):
        if not found["overrides"]:
            pictures = folder / found["name"]
            pictures.mkdir(exist_ok=True)
            plots.draw_settings(*_kept(found, folder), pictures)


def _kept(found: re.Match[str], folder: Path) -> tuple[pandas.DataFrame, SweepConfig]:
    """Return the trials that a table is made of, and the settings of their sweep."""
    name = found["name"]
    recipe = recipes.find(name, "sweep")
    config = read(SweepConfig, recipe, found["overrides"].split())
    if config.metric != read(SweepConfig, recipe).metric:
        config = config.model_copy(update={"hypothesis": None})
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise UserError(f"{path} is missing: copy the results.csv of the sweep {name} there")
    return table.read(path, config), config
