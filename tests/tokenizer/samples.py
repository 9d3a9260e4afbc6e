"""Texts, and files of them, that several tests read."""

import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer

from tokenizer import vocabulary
from tokenizer.cleaning import TextConfig
from tokenizer.sources import Files
from tokenizer.vocabulary import VocabularyConfig

MIXED = (
    "The cat sat on the mat.",
    'She said "yes", twice.',
    "고양이가 매트 위에 앉았다.",
    "Naïve café 🙂 👩‍👩‍👧 end.",
    "[MASK] and [SEP] are plain text here.",
    "Tabs\tand\u00a0no-break spaces,\u200bzero width.",
)


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
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": _zst,
}
