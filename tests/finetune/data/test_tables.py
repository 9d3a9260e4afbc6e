import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest

from configs import UserError
from finetune.data.hub_tables import commit, read_hub
from finetune.data.tables import Reading, read
from tests.tokenizer.samples import COMPRESSIONS

ROWS = [{"text": 'One, "two"; three', "label": "1"}, {"text": "넷 ", "label": ""}, {"text": "NA", "label": "null"}]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path: Path, columns: tuple[str, ...] = ("text", "label"), **settings: object) -> list[dict[str, str]]:
    frame = read(path, columns, Reading(**settings))  # type: ignore[arg-type]
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def as_parquet(frame: pd.DataFrame) -> bytes:
    content = io.BytesIO()
    frame.to_parquet(content)
    return content.getvalue()


WRITERS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    ".csv": lambda frame: str(frame.to_csv(index=False)).encode(),
    ".tsv": lambda frame: "\n".join(["text\tlabel", *("\t".join(row) for row in frame.to_numpy())]).encode(),
    ".jsonl": lambda frame: str(frame.to_json(orient="records", lines=True)).encode(),
    ".parquet": as_parquet,
}


@pytest.mark.parametrize("compression", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_reads_back_what_was_written(tmp_path: Path, suffix: str, compression: str) -> None:
    content = WRITERS[suffix](pd.DataFrame(ROWS))
    content = COMPRESSIONS[compression](content) if compression else content
    assert rows(write(tmp_path, f"a.v1{suffix}{compression}", content)) == ROWS


def test_csv_may_have_a_byte_order_mark_windows_lines_and_newlines_in_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b'\xef\xbb\xbftext,label\r\n"one\r\ntwo",1\r\n\r\n"say ""hi""",0\r\n')
    assert [tuple(row.values()) for row in rows(path)] == [("one\r\ntwo", "1"), ('say "hi"', "0")]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_of_csv_is_told_by_its_first_line(tmp_path: Path, separator: str) -> None:
    path = write(tmp_path, "a.csv", separator.join(["id", "text", "label"]) + f'\n1{separator}"a,b;c\td"{separator}x\n')
    assert rows(path) == [{"id": "1", "text": "a,b;c\td", "label": "x"}]
    assert rows(write(tmp_path, "b.csv", "text\none\n"), ("text",)) == [{"text": "one"}]


def test_a_text_may_be_longer_than_the_csv_module_likes(tmp_path: Path) -> None:
    assert len(rows(write(tmp_path, "a.csv", f"text,label\n{'a' * 200_000},1\n"))[0]["text"]) == 200_000


def test_bare_quotes_are_characters_in_tsv(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"one\t1\ntwo"\t0\n')
    assert [row["text"] for row in rows(path)] == ['"one', 'two"']


def test_a_header_names_the_columns_of_files_that_do_not(tmp_path: Path) -> None:
    header = ("source", "label", "mark", "sentence")
    bare = write(tmp_path, "a.tsv", "gj04\t1\t\tOne.\nbc01\t0\t*\tTwo.\n")
    named = write(tmp_path, "b.csv", "sentence,label\nOne.,1\n")
    assert rows(bare, ("sentence", "label"), header=header)[1] == dict(
        zip(header, ["bc01", "0", "*", "Two."], strict=True)
    )
    assert rows(named, ("sentence", "label"), header=header) == [{"sentence": "One.", "label": "1"}]


def test_numbers_become_text_and_gaps_the_empty_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b"}\n{"text": null, "label": true}\n')
    assert [tuple(row.values()) for row in rows(path)] == [("a", "1"), ("b", ""), ("", "True")]
    whole = pa_table({"text": ["a", "b"], "label": [2, None]})
    assert [row["label"] for row in rows(write(tmp_path, "a.parquet", whole))] == ["2", ""]
    raw = pa_table({"text": [b"a"], "label": [1]})
    with pytest.raises(UserError, match="row 1: the column 'text' holds a bytes, not text"):
        rows(write(tmp_path, "b.parquet", raw))


def pa_table(columns: dict[str, list[object]]) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), content)
    return content.getvalue()


def test_another_encoding_is_read_if_named(tmp_path: Path) -> None:
    assert (
        rows(write(tmp_path, "a.csv", "text,label\ncafé,1\n".encode("latin-1")), encoding="latin-1")[0]["text"]
        == "café"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"\n \n", "a.csv is empty"),
        ("a.csv", b"text,label\n", "a.csv has no rows"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "a.jsonl.gz is empty"),
        ("a.doc", b"one", "cannot tell the format of .*a.doc .*: it must end in one of .csv, .tsv, .jsonl, .parquet"),
        ("a.csv", b"text,label\none,1\ntwo\n", "a.csv, row 2: 1 columns where the first line has 2"),
        ("a.csv", b"text,label\none,1\ntwo,2,3\n", "a.csv, row 2: 3 columns where the first line has 2"),
        ("a.csv", b"text,label\none,1,2\ntwo,2,3\n", "a.csv, row 1: 3 columns where the first line has 2"),
        ("a.tsv", b"text\tlabel\none\n", "a.tsv, row 1: 1 columns where the first line has 2"),
        ("a.csv", b'text,label\n"one,1\ntwo,2\n', "a.csv is not valid CSV .*: mend the quotes"),
        ("a.csv", b"text,label\none,1\n\xe9,2\n", "a.csv, line 3, byte 17: not text in utf-8"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text"\n', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'["a"]\n', "a.jsonl, line 1: a JSON list"),
        ("a.jsonl", b'{"text": ["a"], "label": 1}\n', "a.jsonl, row 1: the column 'text' holds a list, not text"),
        ("a.jsonl", b'{"text": "\\ud83d", "label": 1}\n', "a.jsonl, row 1: half a character"),
        ("a.csv", b"text,target\none,1\n", "the column 'label' is not there; there are: text, target"),
        ("a.csv", b"text,label,label\none,1,1\n", "the column 'label' is twice there"),
        ("a.csv.gz", b"text", "a.csv.gz is truncated or damaged"),
        ("a.csv.xz", lzma.compress(b"text,label\n" * 99)[:-9], "a.csv.xz is truncated or damaged"),
        ("a.csv.zst", b"text", "a.csv.zst is truncated or damaged"),
        ("a.parquet", b"PAR1 no", "a.parquet is no readable parquet file"),
    ],
)
def test_a_bad_file_is_named_with_the_place_and_the_fault(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        rows(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_an_odd_header_and_an_unknown_encoding_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*none.csv"):
        rows(tmp_path / "none.csv")
    path = write(tmp_path, "a.csv", "one,1\n")
    with pytest.raises(UserError, match="2 columns where header names 3"):
        rows(path, header=("id", "text", "label"))
    with pytest.raises(UserError, match="encoding = 'utf-9' is no known encoding"):
        rows(path, encoding="utf-9")


def test_without_a_network_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"cannot read nobody/nothing from the Hugging Face hub \(.*data.train"
    ) as caught:
        read_hub("nobody/nothing", None, "train", None, ("text",))
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot read nobody/nothing from the Hugging Face hub \(.*data.train"):
        commit("nobody/nothing", None)


def test_offline_a_revision_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert commit("nobody/nothing", "v1") == "v1"
