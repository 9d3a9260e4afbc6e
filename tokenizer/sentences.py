"""Cut running text into sentences by a few rules."""

import re

_BOUNDARY = re.compile(r"[.!?…]+[\"'”’»)\]]*(?= )|[。！？｡]+[」』”’）】]*")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


def split(text: str) -> list[str]:
    """Return the sentences of `text` in order, white space collapsed; together they hold every word of it."""
    sentences = []
    for paragraph in _BLANK_LINE.split(text):
        running = " ".join(paragraph.split())
        start = 0
        for match in _BOUNDARY.finditer(running):
            sentences.append(running[start : match.end()].lstrip(" "))
            start = match.end()
        sentences.append(running[start:].lstrip(" "))
    return [sentence for sentence in sentences if sentence]
