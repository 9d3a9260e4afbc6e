"""The tables of a study's page, rebuilt from the small files that are kept of its sweeps."""

import re
from pathlib import Path

from configs import UserError, read, recipes
from mlm.sweeps.config import SweepConfig
from mlm.sweeps.report import table
from mlm.sweeps.report.text import tables

_REGION = re.compile(
    r"(?P<begin><!-- table: (?P<name>[\w.-]+)(?P<overrides>( [^\s=]+=\S+)*) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)


def filled(page: str, folder: Path) -> str:
    """Return a page with each region `<!-- table: NAME --> ... <!-- end -->` made anew from NAME.csv in `folder`.

    Behind the name may stand settings of the sweep, such as `metric=heldout.accuracy mode=max`.
    """

    def table_of(found: re.Match[str]) -> str:
        name = found["name"]
        config = read(SweepConfig, recipes.find(name, "sweep"), found["overrides"].split())
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the results.csv of the sweep {name} there")
        return f"{found['begin']}{tables(table.read(path, config), config)}\n{found['end']}"

    if len(_REGION.findall(page)) != page.count("<!-- table: "):
        raise UserError("a table of the page has no <!-- end -->: add it")
    return _REGION.sub(table_of, page)
