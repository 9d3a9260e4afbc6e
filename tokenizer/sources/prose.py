"""Turn documentation markup (reStructuredText, NumPy, Google and Markdown styles) into clean English sentences.

The test of a sentence follows the quality rules of Rae et al. 2021 (Gopher, appendix A.1); near-duplicates are found by
shared word shingles (Broder 1997, "On the resemblance and containment of documents").
"""

import inspect
import re
from collections.abc import Iterator

_ADMONITIONS = "note|warning|tip|hint|important|caution|attention|danger|seealso|deprecated|version(?:added|changed)"

_NOT_PROSE = [
    (re.compile(pattern, re.MULTILINE | re.VERBOSE), replacement)
    for pattern, replacement in (
        (r"^\ *(```|~~~)(?:.|\n)*?^\ *\1.*$", ""),  # a fenced block
        (rf"^(\ *)\.\.(?!\ *(?:{_ADMONITIONS})::)(?:\ .*)?$(?:\n(?:\1\ +\S.*|\ *)$)*", ""),  # a directive or footnote
        (r"^(\ *)(\S.*)?::\ *$(?:\n(?:\1\ +\S.*|\ *)$)*", r"\1\2:\n"),  # a literal block, but not the line before it
        (r"^\ *(?:>>>|\.\.\.|In\ \[|\$\ ).*$(?:\n\ *\S.*)*", ""),  # an interactive session, up to a blank line
        (r"^\ *(?:[-=+]{2,}[-=+\ ]*\ [-=+\ ]+|\|.*\||\+[-=+]+\+)$(?:\n\ *\S.*)*", ""),  # a table, up to a blank line
        (r"^(?:.*\n)?\ *([-=~^\"'*\#+`._])\1{2,}\ *$", ""),  # an underlined heading, or a rule
        (r"^\ *(?:\#+\ .*|!!!.*|[A-Z][\w\ ]{0,30}:)$", ""),  # a Markdown heading, or a header such as "Args:"
    )
]
"""Patterns removed from a docstring before it is split into paragraphs, in this order."""

_MARKER = re.compile(
    rf"""\.\.\ *(?:{_ADMONITIONS})::\ *(?:[\d.]+:?(?:\ +|$))?  # the markup of a directive that holds prose
    | (?:(?:[-*+•]|\(?(?:\d\d?|[a-zA-Z])[.)])\ +)?  # a bullet or number, and
    (?: (?!note:|warning:|important:|caution:|tip:)
        (?:[:@]\w+\b[^:]*|\*{{0,2}}[\w.`]+(?:\[[^:]*\])?(?:\ *\([^()]*(?:\([^()]*\)[^()]*)*\))?)  # a described name
        :(?:\ +|$)
    )?""",
    re.VERBOSE | re.IGNORECASE,
)
_TYPED_NAME_OR_SIGNATURE = re.compile(r"[\w.,*` ]+ : .*|[\w.]+\(.*\)(?: *->.*)?:?$")

_INLINE = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r":math:`(\w{1,2})`", r"\1"),
        (r":math:`[^`]*`|\$[^$]*\$|://|www\.", "\0"),  # there are no words for it: the sentence has to go
        (r"(?<!\w)!?\[([^\[\]]+)\](?:\([^()]*\)|\[[^\[\]]*\])|\[(`[^`]+`)\]", r"\1\2"),  # Markdown links
        (r"(?<=`)\\? ?(?='?s\b)", ""),  # the plural of a name in code
        (r"`([^`']*)'(?!\w)", r"'\1'"),  # quoted as in a typewriter's time
        (r"(?<!`)`(?:~(?:\w*\.)*|[!.])(?=\w)", "`"),  # what Sphinx does not show of a dotted name
        (r"(?::[\w:+.-]+:)?`+([^`]*?)(?: ?<[^<>`]*>)?`+(?:__?(?!\w))?", r"\1"),  # roles, code and links
        (r"(?<![\w*])(\*\*?)(?=[^\s*])([^*]*[^\s*])\1(?![\w*])", r"\2"),  # emphasis
        (r"\\ |\\(?=[*_`|])|\s*\[(?:#\w*|\w+)\]_(?!\w)", ""),  # escapes and footnote marks
        (r"(?<![\w.])([A-Z][A-Za-z]+)_(?!\w)", r"\1"),  # links by name
    )
]
"""Inline markup and the plain text that replaces it, in this order."""
_HAS_INLINE = re.compile(r"[`*$\\\]]|_(?!\w)|://|www\.")
"""A character of every inline markup: two paragraphs in three have none and skip the replacements."""

_END = re.compile(r"[.!?][\"')\]”’]*(?:\s+|$)")
_ABBREVIATION = re.compile(
    r"""(?:^|[\s(\["])(?:[Ee]\.?g|[Ii]\.?e|a\.k\.a|vs|cf|ca|viz|resp|approx|[Ff]igs?|[Ee]qs?|[Ee]qn|[Ss]ec|[Cc]h"""
    r"""|No|Vol|pp?|Dr|Mrs?|Prof|St|al|[A-Z]|\.\.)\.$"""
)

_SHAPE = re.compile(r"[\"'(“]?[A-Z].*[.!?][\"')”]?")
_BROKEN = re.compile(
    r"[\0{}<>|\\~^@#$*`]|==|= |\.\.|(?:^| )(?:[,;:)=]|[._](?!\w)|'s )"  # markup, code, or a gap where some was
    r"|: \d\.$|^\S+\]: |[“‘]\"|\"[”’]|\(c\)|\b(?:TODO|FIXME|XXX)\b"
    r"|^If (?!.*\bthen\b)[^,]*$"  # a condition without its consequence, as in a list of errors
)
_WORD = re.compile(r"[\"'(\[“‘]*[A-Za-z]+(?:['’/-][A-Za-z]+)*[\"')\]”’,.;:!?]*")
_FUNCTION_WORDS = {
    "a", "all", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "do", "does", "each", "for",
    "from", "has", "have", "if", "in", "into", "is", "it", "its", "may", "must", "no", "not", "of", "on", "or",
    "should", "than", "that", "the", "then", "these", "they", "this", "those", "to", "was", "we", "when", "which",
    "will", "with", "you",
}  # fmt: skip
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"))

_SHINGLE_WORDS = 4
_TOKEN = re.compile(r"\w[\w.']*\w|\w")
_COMMON_WORD = re.compile(r"[A-Za-z]?[a-z']+")


def sentences(documentation: str) -> Iterator[str]:
    """Yield the complete sentences of one docstring or topic in order, as plain text with white space collapsed."""
    for paragraph in _paragraphs(documentation):
        if _END.search(paragraph):
            yield from filter(_is_prose, _split(paragraph))


def is_new(sentence: str, seen: set[int]) -> bool:
    """Return True and add the sentence's shingles of four words to `seen` if most of them are not in it.

    Case and punctuation do not count, and one identifier, number or acronym is as good as another. Shingles are kept
    as 64-bit hashes: among a million of them, two are mistaken for each other with a probability below 1e-7.
    """
    words = [word.lower() if _COMMON_WORD.fullmatch(word) else "_" for word in _TOKEN.findall(sentence)]
    starts = range(max(1, len(words) - _SHINGLE_WORDS + 1))
    shingles = {hash(tuple(words[start : start + _SHINGLE_WORDS])) for start in starts}
    if 2 * len(shingles & seen) >= len(shingles):
        return False
    seen |= shingles
    return True


def _paragraphs(documentation: str) -> Iterator[str]:
    """Yield the paragraphs, each on one line: lines of the same indentation, or deeper below a marker."""
    text = inspect.cleandoc(documentation)
    for pattern, replacement in _NOT_PROSE:
        text = pattern.sub(replacement, text)
    current: list[str] = []
    column, hanging = 0, False
    for line in [*text.split("\n"), ""]:
        words = line.strip()
        indent = len(line) - len(line.lstrip())
        goes_on = bool(current and words) and (indent == column or (hanging and indent > column))
        found = _MARKER.match(words) if not goes_on or hanging or words[0] in "-*•" else None
        marker = found.end() if found else 0
        if goes_on and not marker:
            current.append(words)
            continue
        if current:
            yield " ".join(current)
        text = "" if not marker and _TYPED_NAME_OR_SIGNATURE.fullmatch(words) else words[marker:]
        current = [text] if text else []
        column, hanging = indent, bool(marker)


def _split(paragraph: str) -> Iterator[str]:
    """Yield the sentences of a paragraph, freed of inline markup."""
    if _HAS_INLINE.search(paragraph):
        for pattern, replacement in _INLINE:
            paragraph = pattern.sub(replacement, paragraph)
    paragraph = " ".join(paragraph.split())
    start = 0
    for end in _END.finditer(paragraph):
        if not _ABBREVIATION.search(paragraph, start, end.start() + 1):
            yield paragraph[start : end.end()].strip()
            start = end.end()


def _is_prose(sentence: str) -> bool:
    """Return True for a complete, balanced sentence of English words, some of them function words."""
    words = sentence.split()
    if not 4 <= len(words) <= 80 or not _SHAPE.fullmatch(sentence) or _BROKEN.search(sentence):
        return False
    if sentence.count('"') % 2 or any(sentence.count(left) != sentence.count(right) for left, right in _PAIRS):
        return False
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    function = sum(word.strip("\"'(),.").lower() in _FUNCTION_WORDS for word in words)
    return plain >= 0.8 * len(words) and function >= 0.15 * len(words)
