import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from configs import UserError
from mlm.evaluation.pairs.pair import Pair
from mlm.evaluation.pairs.reading import read_pairs
from tests.tokenizer.hub import serving


def blimp(*pairs: tuple[str, str], paradigm: str = "causative", field: str = "syntax") -> bytes:
    """Return a file with all columns of BLiMP's."""
    rows = (
        {
            "sentence_good": good,
            "sentence_bad": bad,
            "field": field,
            "linguistics_term": "argument_structure",
            "UID": paradigm,
            "simple_LM_method": True,
            "one_prefix_method": False,
            "pairID": str(number),
        }
        for number, (good, bad) in enumerate(pairs)
    )
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


CAUSATIVE = blimp(("Aaron breaks the glass.", "Aaron appeared the glass."), ("Ann, too.", "Too Ann."))
ISLAND = blimp(("Who leaves?", "Who does leave?"), paradigm="adjunct_island", field="syntax/semantics")
AGREEMENT = b"these dog runs .\nthis dog runs .\nlook at this cats .\nlook at these cats .\n"
EXPECTED = {
    "causative": [
        Pair("Aaron breaks the glass.", "Aaron appeared the glass.", "causative", "syntax"),
        Pair("Ann, too.", "Too Ann.", "causative", "syntax"),
    ],
    "adjunct_island": [Pair("Who leaves?", "Who does leave?", "adjunct_island", "syntax_semantics")],
    "agreement": [
        Pair("this dog runs .", "these dog runs .", "agreement_det_noun-near", "agreement_det_noun"),
        Pair("look at these cats .", "look at this cats .", "agreement_det_noun-near", "agreement_det_noun"),
    ],
}


def in_a_process(script: str, **environment: str) -> str:
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout.rstrip("\n")


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_blimps_archive_is_read_as_published_with_what_a_mac_left_in_it(tmp_path: Path) -> None:
    files = {
        "data/": b"",
        "data/causative.jsonl": CAUSATIVE,
        "data/.DS_Store": b"\0\1",
        "__MACOSX/data/._causative.jsonl": b"\0\5\26\7Mac OS X",
        "data/adjunct_island.jsonl": ISLAND,
        "README.md": b"# BLiMP",
    }
    path = zipped(tmp_path / "BLiMP.zip", files)
    assert read_pairs([str(path)]) == EXPECTED["adjunct_island"] + EXPECTED["causative"]
    assert read_pairs([str(path)], most=1) == EXPECTED["adjunct_island"] + EXPECTED["causative"][:1]
    assert read_pairs([f"file://{path}"]) == read_pairs([str(path)])


def test_zorros_archive_has_the_bad_sentence_first(tmp_path: Path) -> None:
    path = tmp_path / "zorro.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("zorro/agreement_det_noun-near.txt")
        member.size = len(AGREEMENT)
        archive.addfile(member, io.BytesIO(AGREEMENT))
    assert read_pairs([str(path)]) == EXPECTED["agreement"]


def test_a_folder_and_several_files_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "pairs" / "deeper").mkdir(parents=True)
    (tmp_path / "pairs" / "deeper" / "causative.jsonl").write_bytes(CAUSATIVE)
    (tmp_path / "pairs" / "._causative.jsonl").write_bytes(b"\0")
    (tmp_path / "pairs" / "readme.md").write_text("Nothing.")
    (tmp_path / "pairs" / "another.jsonl").write_bytes(CAUSATIVE)
    assert read_pairs([str(tmp_path / "pairs")]) == EXPECTED["causative"] * 2
    (tmp_path / "pairs" / "agreement_det_noun-near.txt").write_bytes(AGREEMENT)
    with pytest.raises(
        UserError, match=r"pairs holds files of several formats, \.jsonl, \.txt: name those that are pairs"
    ):
        read_pairs([str(tmp_path / "pairs")])
    names = [tmp_path / "pairs" / "deeper" / "causative.jsonl", tmp_path / "pairs" / "agreement_det_noun-near.txt"]
    assert read_pairs(list(map(str, names))) == EXPECTED["causative"] + EXPECTED["agreement"]


def test_a_table_of_ones_own_names_paradigms_or_is_one(tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text('The cat "sat".\tThe cat sitted.\r\nA dog.\tAn dog.\r\n', encoding="utf-8")
    assert read_pairs([str(tmp_path / "mine.tsv")]) == [
        Pair('The cat "sat".', "The cat sitted.", "mine"),
        Pair("A dog.", "An dog.", "mine"),
    ]
    (tmp_path / "named.tsv").write_text(
        "한국어가 좋다.\t한국어를 좋다.\t조사\nA dog.\tAn dog.\tarticle\n", encoding="utf-8"
    )
    assert read_pairs([str(tmp_path / "named.tsv")]) == [
        Pair("한국어가 좋다.", "한국어를 좋다.", "조사"),
        Pair("A dog.", "An dog.", "article"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"bad .\ngood .\nalone .\n", "a.txt: the last sentence has no partner"),
        ("a.txt", b"bad .\n\n", "a.txt, pair 1: a sentence is empty"),
        ("a.txt", b"", "a.txt has no pairs"),
        ("a.tsv", b"one\ttwo\nthree\n", "a.tsv, line 2: a pair is good<TAB>bad"),
        ("a.tsv", b"one\ttwo\tx\nthree\tfour\n", "a.tsv, line 2: 2 columns, and line 1 has 3"),
        ("a.tsv", b"sentence_good\tsentence_bad\none\ttwo\n", "a.tsv, line 1 names columns, and every line is a pair"),
        ("a.tsv", b"one\t \n", "a.tsv, pair 1: a sentence is empty"),
        ("a.jsonl", b'{"sentence_good": "one"}\n', "a.jsonl, line 1: sentence_bad is no text: BLiMP's columns"),
        ("a.jsonl", b'{"sentence_good": "one", "sentence_bad": 2}\n', "line 1: sentence_bad is no text"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: a JSON list, not an object"),
        ("a.json", b"[]", "a.json: its name tells no format of pairs: it must end in one of .jsonl, .txt, .tsv"),
        ("a.zip", b"PK no archive", "a.zip is no zip archive"),
        ("a.tar.gz", b"no archive", "a.tar.gz is no tar archive"),
        ("a.tsv", b"\xff\xfe\xfa\t1", "a.tsv"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_pairs([str(tmp_path / name)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_or_a_folder_without_pairs_and_a_missing_file_are_told(tmp_path: Path) -> None:
    empty = zipped(tmp_path / "empty.zip", {"notes.md": b"none", "__MACOSX/a.jsonl": CAUSATIVE})
    for name in (str(empty), str(tmp_path)):
        with pytest.raises(UserError, match=r"has no pairs: it holds no file whose name ends in \.jsonl"):
            read_pairs([name])
    for name in ("absent.zip", "absent.tsv", "absent"):
        with pytest.raises(UserError, match=f"no such file: .*{name}"):
            read_pairs([str(tmp_path / name)])


def test_a_data_set_of_the_hub_has_a_paradigm_in_each_configuration(tmp_path: Path) -> None:
    card = b"""---
configs:
- config_name: causative
  data_files: [{split: train, path: causative.jsonl}]
- config_name: adjunct_island
  data_files: [{split: train, path: adjunct_island.jsonl}]
---
"""
    files = {"README.md": card, "causative.jsonl": CAUSATIVE, "adjunct_island.jsonl": ISLAND}
    with serving("me/pairs", files) as address:
        script = "from mlm.evaluation.pairs.reading import read_pairs; print(read_pairs(['me/pairs']))"
        found = in_a_process(script, HF_ENDPOINT=address, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path))
    assert found == repr(EXPECTED["causative"] + EXPECTED["adjunct_island"])


@pytest.mark.skipif("MLM_TEST_DATA" not in os.environ, reason="MLM_TEST_DATA names no folder with real data")
@pytest.mark.parametrize(("name", "paradigms", "each"), [("BLiMP.zip", 67, 1000), ("zorro.tar.gz", 23, 2000)])
def test_published_pairs_are_read_whole(name: str, paradigms: int, each: int) -> None:
    pairs = read_pairs([str(Path(os.environ["MLM_TEST_DATA"]) / "minimal_pairs" / name)])
    assert list(Counter(pair.paradigm for pair in pairs).values()) == [each] * paradigms
    if name == "BLiMP.zip":
        assert len({pair.field for pair in pairs}) == 4
