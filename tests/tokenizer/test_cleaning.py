import itertools
import os
import random
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, normalizers

from configs import UserError, read
from tests.tokenizer.samples import files, prose, write_lines
from tokenizer.cleaning import (
    CleanDocument,
    Reason,
    SeenHashes,
    TextConfig,
    as_read_by,
    clean_corpora,
    clean_documents,
    drop_duplicates,
    fall_to_one_side,
    fingerprint_as_read,
    split_documents,
)
from tokenizer.command_line import TextOptions
from tokenizer.sources import Document, Files
from tokenizer.vocabulary import VocabularyConfig


def clean(documents: list[str] | list[Document], **settings: object) -> tuple[list[CleanDocument], dict[Reason, int]]:
    """Clean all documents at once, see that one after the other comes to the same, and count what is dropped."""
    text = TextConfig(**settings)  # type: ignore[arg-type]
    given = [Document(d) if isinstance(d, str) else d for d in documents]
    found = list(clean_documents(text, given, SeenHashes(sqlite3.connect(":memory:"))))
    seen = SeenHashes(sqlite3.connect(":memory:"))
    assert [passage for document in given for passage in clean_documents(text, [document], seen)] == found
    dropped = Counter[Reason]()
    drop_duplicates(split_documents(text, given)[1], text, SeenHashes(sqlite3.connect(":memory:")), dropped)
    return found, {reason: number for reason, number in dropped.items() if number}


def sentences(documents: list[str] | list[Document], **settings: object) -> list[list[str]]:
    return [passage.sentences for passage in clean(documents, **settings)[0]]


def test_sentences_stand_alone_or_keep_their_place_in_the_running_text() -> None:
    documents = ["One  here.\nTwo here. ", "私。彼。 Three."]
    assert sentences(documents) == [["One here.", "Two here."], ["私。", "彼。", "Three."]]
    runs = sentences(documents, segments="documents")
    assert runs == [["One here.", " Two here."], ["私。", "彼。", " Three."]]


def test_documents_may_stay_whole() -> None:
    assert sentences(["One here.\n\n Two\there."], split_sentences=False) == [["One here. Two here."]]


def test_sentences_that_the_source_has_cut_stay_as_they_are() -> None:
    document = Document("a. b", ("a. b", "c"), "module")
    assert sentences([document]) == [["a. b", "c"]]
    assert sentences([document], segments="documents") == [["a. b", " c"]]


def test_lengths_outside_the_bounds_are_dropped_and_counted() -> None:
    cleaned, dropped = clean(["One. Two words. Here are three. And here are four."], minimum_words=2, maximum_words=3)
    assert [passage.sentences for passage in cleaned] == [["Two words.", "Here are three."]]
    assert dropped == {"short sentences": 1, "long sentences": 1}
    assert clean(["One."], minimum_words=2)[0] == []


def test_duplicate_documents_are_dropped_whatever_their_white_space() -> None:
    cleaned, dropped = clean(["One. Two.", "Three.", " One.\nTwo. ", "one. Two."])
    assert [passage.sentences for passage in cleaned] == [["One.", "Two."], ["Three."], ["one.", "Two."]]
    assert dropped == {"duplicate documents": 1}


def test_duplicate_sentences_are_dropped_within_and_across_documents() -> None:
    cleaned, dropped = clean(["One. Two.", "Two. Three. Three.", "One."], deduplicate="sentences")
    assert [passage.sentences for passage in cleaned] == [["One.", "Two."], ["Three."]]
    assert dropped == {"duplicate sentences": 3}


def test_duplicates_may_stay() -> None:
    assert sentences(["One.", "One."], deduplicate="none") == [["One."], ["One."]]


def test_a_document_is_on_the_same_side_whatever_is_around_it() -> None:
    documents = prose(2000)
    sides = {p.sentences[0]: p.side for p in clean(documents, heldout_share=0.1, split_sentences=False)[0]}
    random.Random(1).shuffle(documents)
    again = clean([f" {d} " for d in documents[:500]], heldout_share=0.1, split_sentences=False)[0]
    assert all(sides[passage.sentences[0]] == passage.side for passage in again)
    assert 150 < sum(side == "heldout" for side in sides.values()) < 250
    more = clean(documents, heldout_share=0.2, split_sentences=False)[0]  # a larger share only adds to a smaller one
    assert {s for s, side in sides.items() if side == "heldout"} < {p.sentences[0] for p in more if p.side == "heldout"}


def test_a_group_is_wholly_on_one_side() -> None:
    documents = [Document(text, group=f"module{number % 20}") for number, text in enumerate(prose(400))]
    sides = [passage.side for passage in clean(documents, heldout_share=0.3)[0]]
    assert len(set(sides)) == 2
    assert all(side == sides[number % 20] for number, side in enumerate(sides))


SPELLINGS: list[tuple[VocabularyConfig, str, str]] = [
    (VocabularyConfig(normalisation="nfc"), "Café {} 한글.", unicodedata.normalize("NFD", "Café {} 한글.")),
    (VocabularyConfig(normalisation="nfkc"), "Number {} fits the ﬁle.", "Ｎumber {} fits the file."),
    (VocabularyConfig(lowercase=True), "The River {} is Open.", "THE RIVER {} IS OPEN."),
    (VocabularyConfig(normalisation="nfkc", lowercase=True), "Stage Ⅻ of {}.", "stage\u00a0XII  of {}."),
]


@pytest.mark.parametrize(("settings", "one", "other"), SPELLINGS)
@pytest.mark.parametrize("deduplicate", ["documents", "sentences", "none"])
def test_texts_that_the_tokenizer_reads_alike_are_one_text(
    settings: VocabularyConfig, one: str, other: str, deduplicate: str
) -> None:
    documents = [Document(form.format(number)) for number in range(200) for form in (one, other)]
    text, as_read = TextConfig(deduplicate=deduplicate, heldout_share=0.3), as_read_by(settings.normalizer())  # type: ignore[arg-type]
    dropped = Counter[str]()
    seen = SeenHashes(sqlite3.connect(":memory:"))
    found = list(clean_documents(text, documents, seen, as_read, dropped=dropped))  # type: ignore[arg-type]
    read: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for document in found:
        read[document.side].add(as_read(document.sentences[0]))
    assert len(read["train"]) + len(read["heldout"]) == 200
    assert min(map(len, read.values())) > 30
    if deduplicate == "none":
        assert (len(found), +dropped) == (400, Counter())
    else:
        assert (len(found), +dropped) == (200, Counter({f"duplicate {deduplicate}": 200}))
    plain = list(clean_documents(text, documents, SeenHashes(sqlite3.connect(":memory:"))))
    assert len(plain) == 400  # to a tokenizer that normalizes nothing they differ


def test_texts_of_which_a_normalizer_leaves_nothing_are_not_all_equal() -> None:
    as_read = as_read_by(normalizers.Replace(Regex("[0-9. ]"), ""))
    documents = [Document(line) for line in ("1.", "2.", "1.", "a1", "a 2")]
    _, table = split_documents(TextConfig(), documents, as_read)
    dropped = Counter[Reason]()
    kept = drop_duplicates(table, TextConfig(), SeenHashes(sqlite3.connect(":memory:")), dropped)
    assert kept.tolist() == [True, True, False, True, False]
    assert dropped["duplicate documents"] == 2


@pytest.mark.parametrize("deduplicate", ["documents", "none"])
@pytest.mark.parametrize("limit", [1, 7, 100, 101, 10_000])
def test_training_words_are_the_first_ones_up_to_the_limit_in_whole_sentences(limit: int, deduplicate: str) -> None:
    documents = [Document(" ".join(f"Line {n} {k}{' more' * (n % 5)}." for k in range(3))) for n in range(60)] * 2
    settings = {"deduplicate": deduplicate, "heldout_share": 0.3}

    def read(**further: object) -> tuple[dict[str, list[str]], Counter[Reason]]:
        text, dropped = TextConfig(**settings, **further), Counter[Reason]()  # type: ignore[arg-type]
        found = list(clean_documents(text, documents, SeenHashes(sqlite3.connect(":memory:")), dropped=dropped))
        return {s: [line for d in found if d.side == s for line in d.sentences] for s in ("train", "heldout")}, dropped

    everything, _ = read()
    limited, dropped = read(most_words=limit)
    totals = np.cumsum([len(line.split()) for line in everything["train"]])
    assert limited["train"] == everything["train"][: (totals <= limit).sum()]
    assert limited["heldout"] == everything["heldout"]
    assert dropped["sentences beyond most_words"] == (totals > limit).sum()


@pytest.mark.parametrize("deduplicate", ["documents", "sentences", "none"])
def test_a_share_of_the_training_documents_is_the_same_part_of_any_text(deduplicate: str) -> None:
    lines = [f"Line {n}. Further words." for n in range(2000)]

    def read(lines: list[str], share: float) -> tuple[dict[str, set[str]], Counter[Reason]]:
        text, dropped = TextConfig(deduplicate=deduplicate, heldout_share=0.2, train_share=share), Counter[Reason]()  # type: ignore[arg-type]
        seen = SeenHashes(sqlite3.connect(":memory:"))
        found = list(clean_documents(text, map(Document, lines), seen, dropped=dropped))
        return {side: {d.sentences[0] for d in found if d.side == side} for side in ("train", "heldout")}, dropped

    everything, _ = read(lines, 1.0)
    fifth, dropped = read(lines, 0.2)
    assert fifth["heldout"] - {"Further words."} == everything["heldout"] - {"Further words."}
    assert fifth["train"] < read(lines, 0.5)[0]["train"] < everything["train"]
    assert len(fifth["train"]) == pytest.approx(0.2 * len(everything["train"]), rel=0.2)
    assert dropped["sentences beyond train_share"] == 2 * (len(everything["train"]) - len(fifth["train"]))
    assert read(lines[::-1], 0.2)[0]["train"] - {"Further words."} == fifth["train"] - {"Further words."}


@pytest.mark.parametrize("segments", ["sentences", "documents"])
def test_a_single_document_is_split_between_the_sides_at_sentences(segments: str, tmp_path: Path) -> None:
    sentences = [f"Sentence {number % 150} of the book." for number in range(200)]
    text = files(write_lines(tmp_path / "a.txt", [" ".join(sentences)]), segments=segments, heldout_share=0.2)
    assert fall_to_one_side(text, str)
    found = list(clean_documents(text, text.documents(), SeenHashes(sqlite3.connect(":memory:")), at_sentences=True))
    assert " ".join("".join(s if s[0] == " " else f" {s}" for s in f.sentences).strip() for f in found) == " ".join(
        sentences
    )
    sides = {side: {s.strip() for f in found if f.side == side for s in f.sentences} for side in ("train", "heldout")}
    assert not sides["train"] & sides["heldout"]
    assert 15 < len(sides["heldout"]) < 45
    assert all(before.side != after.side for before, after in itertools.pairwise(found))  # no part is cut in two
    write_lines(tmp_path / "a.txt", prose(200))
    assert not fall_to_one_side(text, str)


def mixture(folder: Path, **corpora: Sequence[str]) -> TextConfig:
    """Return the mixture of corpora whose documents are given."""
    parts = [
        {"name": name, "share": 1.0, "source": {"kind": "files", "paths": [str(write_lines(folder / name, documents))]}}
        for name, documents in corpora.items()
    ]
    source = {"kind": "mixture", "parts": parts}
    return TextConfig.model_validate({"source": source, "heldout_share": 0.2}, strict=False)


def test_the_first_documents_of_a_mixture_are_of_all_its_corpora(tmp_path: Path) -> None:
    """A vocabulary is learned from the first ones of a long text."""
    corpora = {f"{name}.txt": [f"{name}{number}" for number in range(count)] for name, count in (("a", 5), ("b", 3))}
    text, seen = mixture(tmp_path, **corpora), SeenHashes(sqlite3.connect(":memory:"))
    found = [document.sentences[0] for document in clean_corpora(text, seen, str, [False, False])]
    assert found == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "a4"]


def test_each_corpus_of_a_mixture_has_its_own_heldout_split(tmp_path: Path) -> None:
    """A book of one document is split at sentences, as when its shards are built, whatever the other corpora are."""
    book = " ".join(f"Sentence {number} of the book." for number in range(200))
    text = mixture(tmp_path, **{"book.txt": [book], "lines.txt": prose(200)})
    at_sentences = [fall_to_one_side(corpus, str) for corpus in text.corpora()]
    assert at_sentences == [True, False]
    mixed, alone = set[tuple[str, str]](), set[tuple[str, str]]()
    for document in clean_corpora(text, SeenHashes(sqlite3.connect(":memory:")), str, at_sentences):
        mixed |= {(document.side, sentence) for sentence in document.sentences}
    for corpus, at in zip(text.corpora(), at_sentences, strict=True):
        seen = SeenHashes(sqlite3.connect(":memory:"))
        for document in clean_documents(corpus, corpus.documents(), seen, at_sentences=at):
            alone |= {(document.side, sentence) for sentence in document.sentences}
    assert mixed == alone
    assert 15 < sum(side == "heldout" and "of the book" in sentence for side, sentence in mixed) < 65


def test_the_fingerprint_is_of_content_and_settings(tmp_path: Path) -> None:
    a, b = write_lines(tmp_path / "a.txt", ["one"]), write_lines(tmp_path / "b.txt", ["one"])
    assert files(a).fingerprint() == files(b).fingerprint()
    changed: list[dict[str, object]] = [
        {"segments": "documents"},
        {"split_sentences": False},
        {"minimum_words": 1},
        {"maximum_words": 9},
        {"deduplicate": "none"},
        {"heldout_share": 0.02},
        {"most_words": 1},
        {"train_share": 0.5},
    ]
    prints = {files(a).fingerprint(), *(files(a, **settings).fingerprint() for settings in changed)}
    assert len(prints) == 1 + len(changed) == len(TextConfig.model_fields)
    assert fingerprint_as_read("a", None) == "a"
    assert fingerprint_as_read("a", normalizers.NFC()) == fingerprint_as_read("a", normalizers.Lowercase()) != "a"
    write_lines(b, ["two"])
    assert files(a).fingerprint() != files(b).fingerprint()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("text.minimum_words=9", "minimum_words=9 is over maximum_words=5"),
        ("text.heldout_share=0", "text.heldout_share = '0'"),
        ("text.segments=lines", "text.segments = 'lines'"),
        ("text.dedup=none", "unknown key text.dedup: did you mean text.deduplicate"),
    ],
)
def test_settings_that_cannot_be_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(TextOptions, None, ["text.maximum_words=5", override])


@pytest.mark.skipif("MLM_TEST_DATA" not in os.environ, reason="MLM_TEST_DATA names no folder with real data")
def test_real_parallel_and_messy_files_give_their_columns() -> None:
    data = Path(os.environ.get("MLM_TEST_DATA", ""))
    pairs = str(data / "ko_en" / "pairs.tsv.gz")
    both, korean = (
        sum(1 for _ in Files(paths=(pairs,), columns=columns).documents()) for columns in (("ko", "en"), ("ko",))
    )
    assert both > 1.9 * korean > 100_000
    tweets = Files(paths=(str(data / "disaster_tweets" / "train.csv"),))
    texts = [document.text for document in tweets.documents()]
    assert len(texts) == 6082
    assert any("\n" in text for text in texts)
    assert 5000 < len(sentences(texts)) < len(texts)
