"""Clean short messages, read them from tables, and recognize repeated texts."""

import html
import re
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from pydantic import Field

from configs import Config, Texts
from tokenizer.cleaning import AsRead
from tokenizer.sources.readers import TableConfig, read_table
from tokenizer.vocabulary import JOINERS

_URL = re.compile(r"(?i)(?:https?://|\bwww\.)(?:[!#-;=?-~]*[A-Za-z0-9/_=&%#+~@$*-])?")
"""ASCII only, because languages without spaces continue right after a URL; it ends before a full stop or bracket."""
MARKS = JOINERS + "".join(c for c in map(chr, range(0x20000)) if unicodedata.category(c).startswith("M"))
"""Characters that belong to the word before them: combining marks, which are no letters to Python, and joiners."""
_MENTION = re.compile(rf"(?<![\w@{MARKS}])@[\w{MARKS}]+")
_HASHTAG = re.compile(rf"(?<![\w&{MARKS}])#([\w{MARKS}]+)")
_JOINT = re.compile(r"_+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
"""The borders of words within a hashtag."""
_NOWHERE = "(?!)"
"""A pattern that matches no text."""

Treatment = Literal["keep", "replace", "remove"]


class Cleaning(Config):
    """The changes of a text, the same in training and prediction; white space is always collapsed."""

    html_entities: bool = False
    """Decode HTML entities such as &amp; and &gt;."""
    urls: Treatment = "keep"
    """Treatment of web addresses; 'replace' writes URL."""
    mentions: Treatment = "keep"
    """Treatment of names such as @someone; 'replace' writes @user."""
    hashtags: Literal["keep", "split"] = "keep"
    """'split' writes #ForestFire as Forest Fire."""
    longest_repeat: int | None = Field(None, ge=1, le=1000)
    """Longest repetition of a letter or sign: 3 turns 'sooooo!!!!!!' into 'sooo!!!'; null: no limit."""
    lower_case: bool = False
    """Turn all letters into lower case."""
    prefix: Texts = ()
    """Columns put before the (first) text where they are not empty, as in 'forest fire: Run!'."""

    def clean(self, text: str) -> str:
        """Return the cleaned text."""
        if self.html_entities:
            text = html.unescape(text)
        for pattern, written, spaces in self.substitutions():
            text = re.sub(pattern, lambda found: re.sub(spaces, " ", found.expand(written)), text)  # noqa: B023 - at once
        return " ".join((text.lower() if self.lower_case else text).split())

    def substitutions(self) -> list[tuple[str, str, str]]:
        """Return the patterns that are replaced in turn, what is written for each, and what in that becomes a space.

        Another program can repeat them: they are in Python's syntax of regular expressions.
        """
        found = []
        for treatment, pattern, name in ((self.urls, _URL, "URL"), (self.mentions, _MENTION, "@user")):
            if treatment != "keep":
                found.append((pattern.pattern, name if treatment == "replace" else " ", _NOWHERE))
        if self.hashtags == "split":
            found.append((_HASHTAG.pattern, r"\1", _JOINT.pattern))
        if self.longest_repeat is not None:
            found.append((rf"(([^\d\s])\2{{{self.longest_repeat - 1}}})\2+", r"\1", _NOWHERE))
        return found


@dataclass(frozen=True)
class RowReader:
    """Turns the rows of a table into the texts that a classifier reads, the same in training and prediction."""

    columns: tuple[str, ...]
    """Column of the text, or of the two texts of a pair."""
    label: str
    """Column of the class."""
    cleaning: Cleaning
    table: TableConfig

    def rows(
        self, path: str | Path, columns: Sequence[str] = (), *, all_columns: bool = False, encoding: str | None = None
    ) -> list[dict[str, str]]:
        """Return the rows of a table; a UserError if it lacks a column of the texts or one of `columns`.

        They have no other columns, unless `all_columns`. `encoding` is that of this file, whatever that of others is.
        """
        wanted = list(dict.fromkeys([*self.columns, *columns]))
        optional = [name for name in self.cleaning.prefix if name not in wanted]
        return read_table(path, wanted, self.table, optional=optional, all_columns=all_columns, encoding=encoding)

    def texts(self, row: Mapping[str, str]) -> tuple[str, ...]:
        """Return a row's cleaned text or texts, with the prefix before the first.

        An empty text stays empty, and a prefix whose column is not there is left out.
        """
        first, *others = [self.cleaning.clean(row[column]) for column in self.columns]
        # Keywords of Kaggle's data are quoted as in a URL: forest%20fire
        before = [self.cleaning.clean(unquote(row.get(column, ""))) for column in self.cleaning.prefix]
        return (": ".join([*filter(None, before), first]) if first else "", *others)

    def keys(self, row: Mapping[str, str], as_read: AsRead) -> tuple[Hashable, ...]:
        """Return the keys of a row's texts, of which equal texts share one; `as_read` is the encoder's.

        They are the keys as it is given, and as the encoder reads it with and without prefix.
        """
        given, cleaned = [row[column] for column in self.columns], [self.texts(row)]
        if self.cleaning.prefix:
            cleaned.append(tuple(map(self.cleaning.clean, given)))
        return text_keys(given, cleaned, as_read)


def text_keys(given: Sequence[str], cleaned: Iterable[Sequence[str]], as_read: AsRead) -> tuple[Hashable, ...]:
    """Return the keys of a text or pair as it is given, and as the encoder reads each of its cleaned forms."""
    return duplicate_key(given), *(duplicate_key([*map(as_read, texts)]) for texts in cleaned)


def duplicate_key(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the key that equal texts share, of texts as they are given and without prefix.

    Case, white space, HTML entities, web addresses and mentions are ignored, because messages are passed on with a new
    address or to somebody else. A text of nothing else keeps them.
    """
    return tuple(_bare(text) for text in texts)


def _bare(text: str) -> str:
    text = html.unescape(text)
    kept = " ".join(_MENTION.sub(" ", _URL.sub(" ", text)).casefold().split())
    return kept or " ".join(text.casefold().split())
