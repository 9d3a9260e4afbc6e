"""Texts, and files of them, that several tests read."""

import base64
import csv
import gzip
import io
import json
import lzma
import random
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, pre_tokenizers

from tokenizer import vocabulary
from tokenizer.cleaning import TextConfig
from tokenizer.sources import Files
from tokenizer.sources.readers import TextFileConfig, texts
from tokenizer.vocabulary import VocabularyConfig

MIXED = (
    "The cat sat on the mat.",
    'She said "yes", twice.',
    "고양이가 매트 위에 앉았다.",
    "Naïve café 🙂 👩‍👩‍👧 end.",
    "[MASK] and [SEP] are plain text here.",
    "Tabs\tand\u00a0no-break spaces,\u200bzero width.",
)

WORDS = {
    "Hindi": ("छोटी लड़की बगीचे में गाती है।", 7),
    "Bengali": ("বৃষ্টির দিনে আমরা খিচুড়ি খাই।", 6),
    "Tamil": ("மழை பெய்தால் குளிர்ந்த காற்று வீசும்.", 6),
    "Sinhala, with a joiner": ("ශ්\u200dරී ලංකාව", 2),
    "Thai": ("วันนี้ฝนตก เราอยู่บ้าน", 2),
    "Hebrew with points": ("הַיֶּלֶד קוֹרֵא סֵפֶר.", 4),
    "Arabic with vowels": ("كَتَبَ الطَّالِبُ دَرْسَهُ.", 4),
    "Persian, with non-joiners": ("می\u200cخواهم کتاب\u200cها را بخوانم.", 5),
    "Vietnamese, decomposed": (unicodedata.normalize("NFD", "Trời mưa to, chúng tôi ở nhà."), 9),
    "Korean, decomposed": (unicodedata.normalize("NFD", "비가 와서 집에 있었다."), 5),
    "Khmer": ("ខ្ញុំទៅផ្សារ ទិញបន្លែ។", 3),
    "Burmese": ("မိုးရွာလျှင်၊ အိမ်မှာနေမည်။", 4),
    "Armenian": ("Ինչո՞ւ ես լալիս։", 4),
    "Amharic": ("ዛሬ ዝናብ ዘነበ።", 4),
    "English, with soft hyphens": ("The in\u00advis\u00adible hy\u00adphens, and the main\u2060land.", 8),
    "Hebrew, with marks of direction": ("גרסה\u200e 2\u200e של התוכנה\u200f.", 5),
    "signs": ("❤️ 1️⃣ 2\u0301 'S\u0301o 's\u0301o", 7),
}
"""Sentences, with their numbers of words and of punctuation marks, counted by hand."""


def long_texts() -> dict[str, str]:
    """Return texts with more than a thousand characters between spaces."""
    chance = random.Random(0)
    return {
        "Chinese with commas": "，".join(["山上的老人种了很多茶树"] * 200),
        "Japanese": "雨の日は家で本を読みます" * 200,
        "Thai": "วันนี้ฝนตกเราอยู่บ้าน" * 200,
        "Khmer": "ខ្ញុំទៅផ្សារទិញបន្លែ" * 200,
        "DNA": "".join(chance.choices("ACGT", k=200_000)),  # a minute, if it were one word
        "base64": base64.b64encode(chance.randbytes(3000)).decode(),
        "code": "".join(f"function(a{n}){{return a{n}+{n};}}" for n in range(100)),
        "a line": "-=" * 3000,
    }


def prose(documents: int, seed: int = 0, sentences: int = 3) -> list[str]:
    """Return documents of a few English and Korean sentences, all different."""
    chance = random.Random(seed)
    names = ["".join(chance.choices("aeinorst", k=5)).title() for _ in range(60)]
    subjects = [*names, "The cat", "A dog", "My neighbour", "Dr. Smith", "고양이가", "The U.S. Army", "Nobody"]
    verbs = ["saw", "didn't hear", "painted", "보았다", "counted", "wrote to"]
    objects = ["the house", "an apple 🍎", "3.14 pies", "학교를", "(some) friends", "it"]
    return [
        " ".join(
            f"{chance.choice(subjects)} {chance.choice(verbs)} {chance.choice(objects)} {number}-{place}."
            for place in range(chance.randint(1, sentences))
        )
        for number in range(documents)
    ]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, **settings: object) -> list[str]:
    """Return the texts of a file as pretraining reads them, without the ends of lines."""
    return [text.rstrip("\r\n") for text, _ in texts(path, TextFileConfig(**settings))]  # type: ignore[arg-type]


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """Write one document a line."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def files(*paths: Path, **settings: Any) -> TextConfig:
    """Return the settings to read `paths`."""
    return TextConfig(source=Files(paths=tuple(map(str, paths))), **settings)


def tokenizer(lines: Sequence[str], size: int = 300, **settings: Any) -> Tokenizer:
    """Learn a small vocabulary."""
    return vocabulary.learn(iter(lines), VocabularyConfig(size=size, **settings))


def earlier(learned: Tokenizer) -> Tokenizer:
    """Return the tokenizer with the pattern of vocabularies that were learned before marks belonged to words."""
    changed = Tokenizer.from_str(learned.to_str())
    changed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return changed


def _txt(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def _jsonl(texts: Sequence[str]) -> bytes:
    return "".join(f"{json.dumps({'id': 1, 'text': text})}\n" for text in texts).encode()


def _csv(texts: Sequence[str]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("id", "text"), *(("1", text) for text in texts)])
    return file.getvalue().encode()


def _tsv(texts: Sequence[str]) -> bytes:
    return "".join(f"{row}\n" for row in ["id\ttext", *(f"1\t{text}" for text in texts)]).encode()


def _parquet(texts: Sequence[str]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(texts), "text": list(texts)}), file)
    return file.getvalue()


def _json(texts: Sequence[str]) -> bytes:
    return json.dumps({"data": [{"id": number, "text": text} for number, text in enumerate(texts)]}).encode()


def _xlsx(texts: Sequence[str]) -> bytes:
    book, file = openpyxl.Workbook(), io.BytesIO()
    for row in [("id", "text"), *enumerate(texts)]:
        book.active.append(row)
    book.save(file)
    return file.getvalue()


def _zst(content: bytes) -> bytes:
    buffer = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    compressed: bytes = buffer.getvalue().to_pybytes()
    return compressed


FORMATS: dict[str, Callable[[Sequence[str]], bytes]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".json": _json,
    ".xlsx": _xlsx,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": _zst,
}
