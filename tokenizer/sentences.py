"""Split running text into sentences by a few rules, at . ! ? and at the marks that end sentences in other scripts."""

import re

_OPENERS = "\"'“‘«([「『（"
_CLOSERS = "\"'”’»)]」』）】"
_SPACED_MARKS = ".!?…։؝؞؟۔܀܁܂߹།༎᙮᠃᠉᥄᥅᱾᱿⸮⳹⳺⳻꓿꘎꘏꛳꛷꤯꩝꩞꩟꫰꫱꯫"
_UNSPACED_MARKS = "।॥။።፧፨។៕᜵᜶᪨᪩᪪᪫᭚᭛᭞᭟᰻᰼꡶꡷꣎꣏꧉。！？｡"
"""Marks that end a sentence only before a space, and those that need none, among them the Ethiopic ones, which are also
written as two word separators (፡). Both are Unicode's Sentence_Terminal, but for marks that also end clauses or stand
in English, and for the Tibetan ones, which it lacks."""
_WORD_SEPARATOR, _VERSE_END = "፡॥"
_MARKS = f"{_SPACED_MARKS}{_UNSPACED_MARKS}{_WORD_SEPARATOR}"
_END = re.compile(rf"[{_MARKS}][{_MARKS}]*[{re.escape(_CLOSERS)}]*")
_LONGEST_WORD = 40
"""Characters looked at after a mark: a bound, for a line may be a whole book."""
_BLANK_LINE = re.compile(r"(?>\r\n?|\n)[^\S\r\n]*(?>\r\n?|\n)")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_LAST = _words(
    "Mr Mrs Ms Messrs Mme Mlle Dr Prof Rev Fr St Hon Pres Gov Sen Rep Gen Col Maj Capt Lt Sgt Cmdr Adm vs cf viz e.g "
    "i.e approx"
)
_BEFORE_NUMBERS = _words(
    "No Nos no nos Fig Figs fig figs Eq Eqs Sec Ch ch Vol vol Art art Nr p pp c ca Jan Feb Mar Apr Jun Jul Aug Sep "
    "Sept Oct Nov Dec"
)
"""Last in a sentence unless a number follows."""
_RARELY_LAST = _words("etc al Jr Sr Inc Ltd Co Corp Bros Mt Ft Ave Blvd Dept Univ Ph.D")
"""Last in a sentence, as are initials, only if a word that often begins one follows."""
_OFTEN_FIRST = _words(
    "A An The This That These Those It Its He She They We You I His Her Their Our My There Here In On At For From By "
    "With As If When While What Who Why Where How After Before Since During But And Or So Yet Then Thus However "
    "Although Though No Not One Some Many Most All Both Each Another Such Also"
)


def collapse(text: str) -> str:
    """Return `text` with single spaces for its white space, and none around it."""
    stripped = text.strip()
    if "  " not in stripped and stripped.isprintable():  # the usual case; of white space only the space is printable
        return stripped
    return " ".join(text.split())


def split(text: str, whole: str | None = None) -> list[str]:
    """Return the sentences of `text`, each with the space before it: end to end they are `collapse(text)`.

    A blank line ends a sentence too. `whole` is the collapsed text, where the caller has it.
    """
    stripped = text.strip()
    if "\n" not in stripped and "\r" not in stripped:
        return _split_running(collapse(text) if whole is None else whole)
    parts: list[str] = []
    for paragraph in map(collapse, _BLANK_LINE.split(text)):
        parts += _split_running(f" {paragraph}" if parts and paragraph else paragraph)
    return parts


def _split_running(running: str) -> list[str]:
    cased = running != running.lower()  # a text without capitals begins sentences without them too
    parts, start = [], 0
    for match in _END.finditer(running):
        mark, end = match.span()
        if end == len(running):
            break
        if running[mark] in _UNSPACED_MARKS or running[mark] == _WORD_SEPARATOR:
            ends = _ends_without_space(running, mark, end)
        else:
            ends = running[end] == " " and _ends(running, start, mark, end, cased)
        if ends:
            parts.append(running[start:end])
            start = end
    return [*parts, running[start:]] if running else []


def _ends_without_space(running: str, mark: int, end: int) -> bool:
    """Return True if the mark at `mark`, with closing quotes up to `end`, ends a sentence, space or not."""
    if running[mark] == _WORD_SEPARATOR and running[mark + 1] != _WORD_SEPARATOR:
        return False
    if running[mark] == _VERSE_END and running[end : end + 2].lstrip(" ")[:1].isdecimal():
        return False  # the number of the verse follows
    # It may end just a quotation within the sentence.
    return running[end - 1] not in _CLOSERS or running[end] in f" {_OPENERS}"


def _ends(running: str, start: int, mark: int, end: int, cased: bool) -> bool:
    """Return True if the mark at `mark`, with closing quotes up to `end`, ends the sentence begun at `start`."""
    first = running[end + 1]
    if first in _OPENERS:
        first = running[end + 1 : end + _LONGEST_WORD].lstrip(_OPENERS)[:1]
    if cased and first.islower():
        return False
    if running[mark] != "." or (end > mark + 1 and running[mark + 1] not in _CLOSERS):
        return True  # more than a full stop
    word = running[max(start, running.rfind(" ", start, mark) + 1) : mark].lstrip(_OPENERS)
    if word in _NEVER_LAST:
        return False
    if word in _BEFORE_NUMBERS:
        return not first.isdecimal()
    may_be_initials = len(word) == 1 or "." in word
    if word in _RARELY_LAST or (may_be_initials and all(len(p) == 1 and p.isalpha() for p in word.split("."))):
        following = running[end + 1 : end + _LONGEST_WORD].split(" ", 1)[0]
        return following.strip(f"{_OPENERS},") in _OFTEN_FIRST
    return not word.isdecimal() or running[start:mark].strip() != word  # not after "1." before a heading
