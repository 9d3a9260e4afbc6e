"""Pages of the site that are no files of `docs`: docstrings of each module in the navigation, and the changelog."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

API = "api/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; mkdocs calls this hook once it has found the files."""
    for page in _pages(config.nav):
        if page.startswith(API):
            module = page.removeprefix(API).removesuffix(".md")
            files.append(File.generated(config, page, content=f"# {module}\n\n::: {module}\n"))
    changelog = Path(config.config_file_path).with_name("CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=changelog))
    return files


def _pages(nav: Any) -> Iterator[str]:
    """Yield the paths of pages in a navigation, or in a part of it."""
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _pages(part)
