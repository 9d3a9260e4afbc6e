"""Cut running text into sentences by a few rules, for languages that write . ! ? and for Chinese and Japanese."""

import re

_OPENERS = "\"'“‘«([「『（"
_BOUNDARY = re.compile(
    r"(?P<mark>[.!?…।؟۔]+)[\"'”’»)\]]*(?= )"  # these end a sentence only before a space: 3.14, example.org
    r"|[。！？｡]+(?:[」』”’）]+(?=[ 「『（]|$))?(?![」』”’）])"  # these anywhere, but not in a quotation within a sentence
)
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_TITLES = frozenset(
    "Mr Mrs Ms Messrs Mme Mlle Dr Prof Rev Fr St Hon Pres Gov Sen Rep Gen Col Maj Capt Lt Sgt Cmdr Adm Supt "
    "vs cf viz e.g i.e approx".split()
)
"""Never the end of a sentence."""
_BEFORE_NUMBERS = frozenset(
    "No Nos no nos Fig Figs fig figs Eq Eqs Sec Ch ch Vol vol Art art Nr p pp c ca Jan Feb Mar Apr Jun Jul Aug Sep "
    "Sept Oct Nov Dec".split()
)
"""Not the end of a sentence if a number follows."""
_EITHER = re.compile(r"[^\W\d_]|(?:[^\W\d_]\.)+[^\W\d_]|etc|al|Jr|Sr|Inc|Ltd|Co|Corp|Bros|Mt|Ft|Ave|Blvd|Dept|Univ|Ph\.D")
"""Initials and abbreviations: the end of a sentence if what follows is a word that often begins one."""
_BEGINNERS = frozenset(
    "A An The This That These Those It Its He She They We You I His Her Their Our My There Here In On At For From By "
    "With As If When While After Before Since During But And Or So Yet Then Thus However Although Though What Who "
    "How Why Where Not No One Some Many Most All Both Each Another Such Also".split()
)


def collapse(text: str) -> str:
    """Return `text` with single spaces for its white space, and none around it."""
    stripped = text.strip()
    if "  " not in stripped and stripped.isprintable():  # most often; and no white space but the space is printable
        return stripped
    return " ".join(text.split())


def split(text: str) -> list[str]:
    """Return the sentences of `text`, which end to end are `collapse(text)`: they keep the space before them.

    A blank line ends a sentence too.
    """
    parts: list[str] = []
    for paragraph in _BLANK_LINE.split(text):
        running = collapse(paragraph)
        if running:
            parts += _split_running(f" {running}" if parts else running)
    return parts


def _split_running(running: str) -> list[str]:
    cased = running != running.lower()  # who writes no capitals begins sentences without them too
    parts, start = [], 0
    for match in _BOUNDARY.finditer(running):
        if match["mark"] and not _ends(running, start, match, cased):
            continue
        parts.append(running[start : match.end()])
        start = match.end()
    return [*parts, running[start:]] if start < len(running) else parts


def _ends(running: str, start: int, match: re.Match[str], cased: bool) -> bool:
    """Say whether the mark before a space ends the sentence that begins at `start`."""
    following = running[match.end() + 1 : match.end() + 20].lstrip(_OPENERS)
    if cased and following[:1].islower():
        return False
    if match["mark"] != ".":
        return True
    word = running[max(start, running.rfind(" ", start, match.start()) + 1) : match.start()].lstrip(_OPENERS)
    if word in _TITLES or (word.isdecimal() and running[start : match.start()].strip() == word):  # "1. A heading"
        return False
    if word in _BEFORE_NUMBERS and following[:1].isdecimal():
        return False
    return not _EITHER.fullmatch(word) or following.split(" ", 1)[0].rstrip(",") in _BEGINNERS
