import bz2
import codecs
import errno
import gzip
import hashlib
import lzma
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from configs import UserError
from tests.tokenizer.samples import COMPRESSIONS, read, write, write_lines
from tokenizer.sources import Files, hash_texts, readers
from tokenizer.sources.files import Watch, opened
from tokenizer.sources.readers import TableConfig, read_table


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.txt", ["one", "", "two\u2028\x85\x0b\x0c\x1d end", "three"]),
        ("a.jsonl", ['{"text": "one"}', "", '{"text": "two\u2028\x85 end"}', '{"text": "three"}']),
        ("a.csv", ["text;n", "one;1", '"two\u2028\x85\x0b\x0c\x1d end";2', "", "three;3"]),
        ("a.tsv", ["n\ttext", "1\tone", "2\ttwo\u2028\x85\x0b\x0c\x1d end", "", "3\tthree"]),
    ],
)
def test_each_line_end_ends_lines_and_nothing_else_does(
    tmp_path: Path, name: str, lines: list[str], encoding: str, end: str
) -> None:
    path = write(tmp_path, name, end.join(lines).encode(encoding))
    first, second, third = read(path)
    assert (first, third) == ("one", "three")
    assert second.startswith("two\u2028\x85")
    assert second.endswith(" end")


def test_line_ends_may_be_mixed_and_cut_by_any_block(tmp_path: Path) -> None:
    ends = ("\r\n", "\r", "\n", "\r\r\n", "\n\r")
    pieces = [f"{place} {'x' * (place * 37 % 900)}{ends[place % 5]}" for place in range(3000)]
    whole = "".join(pieces)
    expected = [line for line in whole.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line]
    assert read(write(tmp_path, "a.txt", whole)) == expected
    for block in (1 << 13, 1 << 16, 1 << 20):
        for place in (block - 1, block):
            text = "x" * place + "\r\n\r\ny"
            path = write(tmp_path, "b.txt", text)
            assert read(path, document="paragraph") == ["x" * place, "y"]


def test_blank_lines_of_any_end_separate_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "one\rtwo\r\rthree\r\n\r\nfour\r \rfive\n\n\nsix")
    assert read(path, document="paragraph") == ["one\rtwo", "three", "four", "five", "six"]


def test_a_carriage_return_inside_a_quoted_field_stays(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\r"one\rtwo",1\r"three\r\nfour",2\r')
    assert read(path) == ["one\rtwo", "three\r\nfour"]
    with pytest.raises(UserError, match=r"a\.csv, line 6: 1 columns"):
        read(write(tmp_path, "a.csv", 'text,label\r"one\rtwo",1\r"three\r\nfour",2\rfive\r'))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"a\rb\r\xff\r", "line 3, byte 4: invalid UTF-8"),
        (b"a\r\nb\r\n\xff", "line 3, byte 6: invalid UTF-8"),
        (b"a\r\r\n\xe9\n", "line 3, byte 4: invalid UTF-8"),
        (b"x" * 70_000 + b"\r\n" + b"y" * 70_000 + b"\r\0\n", "line 3, byte 140003: a NUL"),
        (b"a\n\xe2\x82", "line 2, byte 2: invalid UTF-8"),
        (codecs.BOM_UTF8 + b"a\r\xff", "line 2, byte 5: invalid UTF-8"),
        ("a\nb\ud83d\n".encode("utf-16", "surrogatepass"), "line 2, byte 8: invalid UTF-16"),
        ("a\rb\0".encode("utf-16"), "line 2, byte 8: a NUL"),
    ],
)
def test_the_place_of_a_fault_counts_every_line_end(tmp_path: Path, content: bytes, place: str) -> None:
    with pytest.raises(UserError, match=f"a.txt.gz, {place}"):
        read(write(tmp_path, "a.txt.gz", gzip.compress(content)))


def test_a_document_of_any_size_is_read_in_parts_that_end_with_sentences(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert readers.LONGEST_DOCUMENT == 10_000_000
    monkeypatch.setattr(readers, "LONGEST_DOCUMENT", 10_000)
    caplog.set_level("INFO")
    sentence = "A line as long as a library has no end. "
    for name, head, tail, settings in (
        ("a.txt", "", "\nshort\n", {}),
        ("b.txt", "", "\n\nshort\n", {"document": "paragraph"}),
        ("a.jsonl", '{"text": "', '"}\n{"text": "short"}\n', {}),
    ):
        body = sentence * 600 if name != "b.txt" else f"{sentence}\n" * 600
        *parts, last = read(write(tmp_path, name, head + body + tail), **settings)
        assert last == "short"
        assert f"{name} has texts of over 10,000 characters" in caplog.text
        assert len(parts) > 2
        assert max(map(len, parts)) <= 10_000
        assert all(part.rstrip().endswith("no end.") for part in parts)
        assert "".join(parts).replace("\n", "").replace(" ", "") == sentence.replace(" ", "") * 600


@pytest.mark.parametrize("compression", [".gz", ".xz"])
def test_zero_bytes_between_and_behind_compressed_streams_are_no_text(tmp_path: Path, compression: str) -> None:
    compress = COMPRESSIONS[compression]
    streams = bytes(512).join(compress(text) for text in (b"one\n", b"", b"two\n"))
    assert read(write(tmp_path, f"a.txt{compression}", streams + bytes(1024))) == ["one", "two"]


def test_a_damaged_second_stream_is_not_taken_for_the_end(tmp_path: Path) -> None:
    for compression in (".gz", ".xz", ".zst"):
        compress = COMPRESSIONS[compression]
        first, second = compress(b"one\n"), compress(b"two\n")
        for rest in (b"garbage", b"X" + second[1:], second[:-3], bz2.compress(b"two\n")):
            with pytest.raises(UserError, match="is truncated or damaged"):
                read(write(tmp_path, f"a.txt{compression}", first + rest))
    large = b"".join(lzma.compress(bytes([65 + number]) * 3_000_000 + b"\n") for number in range(3))
    assert [len(line) for line in read(write(tmp_path, "b.txt.xz", large))] == [3_000_000] * 3


def test_an_error_of_the_disk_is_no_damage_of_the_file(tmp_path: Path) -> None:
    """A build is removed for a damaged file, and resumed after an error of the disk."""
    error, path = OSError(errno.EIO, "Input/output error"), write(tmp_path, "a.txt", b"one\n")
    with pytest.raises(OSError, match="Input/output error") as caught, opened(path):
        raise error
    assert caught.value is error


def test_a_zstd_file_of_a_long_window_is_said_to_be_whole(tmp_path: Path) -> None:
    def frame(content: bytes, window_log: int) -> bytes:
        """Return a frame of one raw block, by the format's specification."""
        header = b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3])
        return header + (len(content) << 3 | 1).to_bytes(3, "little") + content

    assert read(write(tmp_path, "a.txt.zst", frame(b"one\n", 27))) == ["one"]
    for name, content in (("b.txt.zst", b"one\n"), ("b.jsonl.zst", b'{"text": "one"}\n')):
        with pytest.raises(UserError, match=rf"{name} is whole.*zstd -d --long=31 .*{name}"):
            read(write(tmp_path, name, frame(content, 31)))


def test_what_is_no_regular_file_is_one_line_and_is_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to("nowhere")
    (tmp_path / "device.csv").symlink_to("/dev/null")
    (tmp_path / "ring.csv").symlink_to("ring.csv")
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind("socket.csv")
        for name, said in {
            "pipe": "a pipe: it would have to be read twice",
            "folder": "a folder",
            "link": "no such file",
            "device": "a device",
            "socket": "a socket",
            "ring": "cannot read",
        }.items():
            path = tmp_path / f"{name}.csv"
            uses: list[Callable[[], object]] = [
                partial(read, path),
                partial(read_table, path, ["text"], TableConfig()),
                Files(paths=(str(path),)).fingerprint,
                Files(paths=(str(path),)).documents,
            ]
            for use in uses:
                with pytest.raises(UserError, match=said) as caught:
                    use()
                assert path.name in str(caught.value)
    with pytest.raises(UserError, match=r"pipe\.csv: a pipe"):
        Files(paths=(f"{tmp_path}/p*.csv",)).documents()


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more\n")


def replace(path: Path) -> None:
    """Put another file of the same size and time in the place of a file."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (append, "a.txt"),
        (lambda path: os.truncate(path, 3), "a.txt"),
        (lambda path: path.unlink(), "a.txt"),
        (lambda path: path.rename(path.with_name("c.txt")), "a.txt"),
        (lambda path: write_lines(path.with_name("c.txt"), ["new"]), "c.txt"),
        (replace, "a.txt"),
    ],
)
def test_a_change_of_the_files_is_seen(tmp_path: Path, change: Callable[[Path], object], named: str) -> None:
    path = write_lines(tmp_path / "a.txt", ["one", "two"])
    write_lines(tmp_path / "b.txt", ["one", "two"])
    source = Files(paths=(f"{tmp_path}/*.txt",))
    with source.watch():
        assert len(list(source.documents())) == 4
    watch = source.watch()
    change(path)
    with pytest.raises(UserError, match=rf"{named} changed while it was read.*wait until it is complete"):
        watch.check()


def test_a_change_explains_the_fault_that_it_causes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt.gz", gzip.compress(os.urandom(50_000).hex().encode()))
    watch = Watch(lambda: [path])
    os.truncate(path, 20_000)
    with pytest.raises(UserError, match=r"a\.txt\.gz changed while it was read"), watch:
        read(path)
    with pytest.raises(UserError, match="truncated"), Watch(lambda: [path]):
        read(path)
    watch = Files(paths=(str(path),)).watch()
    path.unlink()
    with pytest.raises(UserError, match=r"changed while they were read: .*a\.txt\.gz"):
        watch.check()


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".txt.gz"])
def test_only_lone_returns_change_the_fingerprint_of_a_file_read_before(tmp_path: Path, suffix: str) -> None:
    rules = {".txt": ".txt", ".tsv": ".tsv2", ".txt.gz": ".txt.gz"}[suffix]
    for content, same in {"text\na\nb\n": True, "text\r\na\r\nb\r\n": True, "text\ra\rb": False}.items():
        packed = COMPRESSIONS[".gz" if suffix.endswith(".gz") else ""](content.encode())
        source = Files(paths=(str(write(tmp_path, f"a{suffix}", packed)),))
        settings = source.model_dump_json(include={"columns", "document", "invalid_utf8"})
        before = hash_texts(settings, rules, hashlib.sha256(packed).hexdigest())
        assert (source.fingerprint() == before) == same
