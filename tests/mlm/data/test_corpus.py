import json
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import UserError, read
from mlm.build import open_corpus
from mlm.checkpoint import checkpoint
from mlm.config import DataConfig, PretrainConfig
from mlm.data.batches import PackedRows
from mlm.data.corpus import Corpus, corpus_at
from mlm.data.masking import Masking
from mlm.data.order import RowOrder
from mlm.evaluation.bits_per_byte import sentences_of
from mlm.tracking.run_record import RunRecord
from tests.mlm.runs import TINY, mistake, run
from tests.mlm.samples import joined, packed, split_of
from tests.tokenizer.published import published
from tests.tokenizer.samples import files, prose, tokenizer, write_lines
from tokenizer import encode as encode_command
from tokenizer import vocabulary
from tokenizer.cache import learn_from
from tokenizer.cleaning import TextConfig
from tokenizer.mixture import ShardsConfig
from tokenizer.shards.build import build
from tokenizer.shards.format import PartList, open_shards
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import VocabularyConfig

LINES = prose(600)
LEARNED = tokenizer(LINES, size=300)
DOCUMENTS = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=1, max_size=6)


def encode(folder: Path, name: str, lines: Sequence[str], learned: object = LEARNED, **settings: object) -> Path:
    text = files(write_lines(folder / f"{name}.txt", lines), heldout_share=0.2, **settings)
    build(text, learned, folder / name)  # type: ignore[arg-type]
    return folder / name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with shards of two texts, and shards of both texts in one folder."""
    folder = tmp_path_factory.mktemp("shards")
    encode(folder, "both", LINES)
    encode(folder, "first", LINES[:200])
    encode(folder, "second", LINES[200:])
    return folder


def heldout_sentences(folder: Path) -> list[str]:
    """Return the held-out sentences of shards as text."""
    split = open_shards(folder).heldout
    pairs = pairwise(split.sentences[:].tolist())
    return [LEARNED.decode(split.tokens[first:last].tolist()).strip() for first, last in pairs]


def segments(rows: PackedRows) -> Counter[tuple[int, ...]]:
    """Return the tokens of every segment, with the number of times it occurs."""
    whole = rows.assemble(np.arange(len(rows)))
    return Counter(
        tuple(ids_L[segments_L == number].tolist())
        for ids_L, segments_L in zip(whole.ids_BL, whole.segments_BL, strict=True)
        for number in range(1, int(segments_L.max()) + 1)
    )


@pytest.mark.parametrize("name", ["bert", "modernbert", "xlm_roberta"])
def test_a_published_tokenizer_is_trained_with_and_whole_words_of_it_are_masked(tmp_path: Path, name: str) -> None:
    path, text = tmp_path / "tokenizer.json", files(write_lines(tmp_path / "text.txt", LINES[:300]))
    path.write_bytes(vocabulary.serialize(published(name)))
    data = DataConfig(row_length=64, tokenizer=str(path))
    corpus = open_corpus(data, text, VocabularyConfig(), tmp_path / "cache")
    rows, split = corpus.train, corpus.shards[0].train
    assert rows.special == SpecialTokens.of(published(name))
    known, starts, tokens = published(name), split.word_starts, split.tokens
    begin, end = split.sentences[:2]
    sentence = known.decode(tokens[begin:end].tolist())
    assert known.encode(sentence, add_special_tokens=False).ids == tokens[begin:end].tolist()
    pieces = [str(known.id_to_token(token)) for token in tokens.tolist()]
    # A piece that goes on within a word, told by its first character alone, never begins one.
    letters = [piece[:1].isalpha() and not piece.startswith(("Ġ", "▁")) for piece in pieces]
    goes_on = [piece.startswith("##") for piece in pieces] if name == "bert" else letters
    after_letter = [False, *(piece[-1:].isalpha() for piece in pieces[:-1])]
    inside = np.array(goes_on) & np.array(after_letter)
    inside[split.sentences[:-1]] = False
    assert inside.sum() > len(inside) / 10
    assert not starts[inside].any()
    rows_B = np.arange(len(rows))
    whole = rows.assemble(rows_B)
    masking = Masking(unit="word", rate=0.3, mask_share=1.0, random_share=0.0)
    batch = rows.masked(rows_B, np.zeros_like(rows_B), masking, 0.3, seed=0)
    hidden_BL = batch.ids_BL.numpy() == rows.special.mask
    words_BL = np.cumsum(whole.word_starts_BL | ~whole.maskable_BL, axis=1)
    for row in range(len(rows)):
        halves = {words_BL[row, place] for place in np.flatnonzero(hidden_BL[row])}
        inside_words = np.isin(words_BL[row], list(halves)) & whole.maskable_BL[row]
        assert (hidden_BL[row] == inside_words).all()


@given(st.lists(DOCUMENTS, min_size=1, max_size=4), st.booleans(), st.data())
def test_joined_rows_are_the_rows_of_each_folder_in_turn(
    folders: list[list[list[int]]], cls_sep: bool, data: st.DataObject
) -> None:
    parts = [packed(split_of(documents, seed), cls_sep=cls_sep) for seed, documents in enumerate(folders)]
    whole = joined(parts)
    assert len(whole) == sum(map(len, parts))
    assert whole.tokens_per_row * len(whole) == pytest.approx(sum(part.tokens_per_row * len(part) for part in parts))
    expected = [part.assemble(np.arange(len(part))) for part in parts]
    for name, found in vars(whole.assemble(np.arange(len(whole)))).items():
        np.testing.assert_array_equal(found, np.concatenate([getattr(one, name) for one in expected]))
    rows_B = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=5)))
    first_rows = np.cumsum([0, *map(len, parts)])
    owners_B = np.searchsorted(first_rows, rows_B, side="right") - 1
    each = [parts[part].documents(rows_B[owners_B == part] - first_rows[part]) for part in np.unique(owners_B)]
    assert whole.documents(rows_B) == "; ".join(each)


@pytest.mark.parametrize("cls_sep", [False, True])
def test_the_lengths_of_segments_are_those_that_the_model_sees(cls_sep: bool) -> None:
    rows = packed(split_of([[5, 7], [3], [24], [11, 2]] * 10), cls_sep=cls_sep)
    segments_BL = rows.assemble(np.arange(len(rows))).segments_BL
    lengths = [int((row == number).sum()) for row in segments_BL for number in range(1, row.max() + 1)]
    expected = np.bincount(lengths, minlength=rows.row_length + 1) / len(rows)
    np.testing.assert_allclose(rows.segments_per_row, expected)


def test_the_mean_row_of_a_mixture_is_that_of_its_rows() -> None:
    parts = [packed(split_of([[5, 7], [3]] * 20)), packed(split_of([[24]] * 9)), packed(split_of([[2]] * 300), 24)]
    mixture = joined(parts, (0.5, 0.3, 0.2))
    rows_B, _ = mixture.order.rows(0, 0, 10_000)
    whole = mixture.assemble(rows_B)
    assert mixture.tokens_per_row == pytest.approx((whole.segments_BL > 0).sum() / len(rows_B), rel=0.01)
    assert mixture.segments_per_row.sum() == pytest.approx(whole.segments_BL.max(axis=1).mean(), rel=0.01)


def test_a_sample_of_a_mixture_has_no_row_twice() -> None:
    """However large the share of a small corpus is: counts of its pairs would be those of its repetitions."""
    small, large = packed(split_of([[7]] * 3)), packed(split_of([[11]] * 4_000))
    tokens, starts = joined([small, large], (0.9, 0.1)).sample(20 * 24)
    assert np.diff([*starts, len(tokens)]).tolist() == [7] * 3 + [11] * 4  # a row of the small one, two of the large


def config_of(*folders: Path) -> list[ShardsConfig]:
    return [ShardsConfig(folders=tuple(map(str, folders)))]


def test_several_folders_are_one_corpus(home: Path, tmp_path: Path) -> None:
    one = corpus_at(config_of(home / "both"), 64, tmp_path)
    two = corpus_at(config_of(home / "first", home / "second"), 64, tmp_path)
    for side in ("train", "heldout"):
        assert segments(getattr(two, side)) == segments(getattr(one, side))
        assert getattr(two.manifest, side) == getattr(one.manifest, side)
    splits = [[shards.heldout for shards in corpus.shards] for corpus in (one, two)]
    assert Counter(sentences_of(splits[0], one.tokenizer)) == Counter(sentences_of(splits[1], two.tokenizer))
    assert sorted(two.train.sample(10**9)[0].tolist()) == sorted(one.shards[0].train.tokens.tolist())


def test_a_folder_of_parts_is_one_corpus(home: Path, tmp_path: Path) -> None:
    def parted(*names: str) -> Corpus:
        for name in names:
            shutil.copytree(home / name, tmp_path / "parts" / name, dirs_exist_ok=True)
        listed = PartList(fingerprint="", folders=names).model_dump_json()
        (tmp_path / "parts" / "parts.json").write_text(listed, encoding="utf-8")
        return opened(tmp_path, "parts")

    assert segments(parted("first", "second").train) == segments(opened(tmp_path, "parts/first", "parts/second").train)
    assert [one.path.name for one in parted("second").shards] == ["second"]
    (tmp_path / "parts" / "parts.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"parts\.json is damaged"):
        opened(tmp_path, "parts")


def mixture_of(home: Path, cache: Path, **weights: tuple[float, float]) -> Corpus:
    (kind, values), names = next(iter(weights.items())), ("first", "second")
    corpora = [{"folders": str(home / name), kind: value} for name, value in zip(names, values, strict=True)]
    data = DataConfig.model_validate({"row_length": 64, "shards": corpora}, strict=False)
    return open_corpus(data, TextConfig(), VocabularyConfig(), cache)


def test_a_mixture_has_its_shares_and_a_fingerprint_of_its_own(home: Path, tmp_path: Path) -> None:
    mixed = mixture_of(home, tmp_path, share=(3, 1))
    assert mixed.train.order.shares == mixed.heldout.order.shares == (0.75, 0.25)
    assert len(mixed.train) == sum(mixed.train.order.sizes)
    other = mixture_of(home, tmp_path, share=(1, 3))
    joint = corpus_at(config_of(home / "first", home / "second"), 64, tmp_path)
    assert len({corpus.manifest.text_fingerprint for corpus in (mixed, other, joint)}) == 3


def test_epochs_give_each_corpus_rows_in_proportion_to_its_size(home: Path, tmp_path: Path) -> None:
    order = mixture_of(home, tmp_path, epochs=(2, 1)).train.order
    first, second = order.sizes
    assert first != second
    assert order.shares == pytest.approx((2 * first / (2 * first + second), second / (2 * first + second)))
    corpora = order.corpora(order.rows(0, 0, 2 * first + second)[0])
    assert abs((corpora == 0).sum() - 2 * first) <= 1


def test_a_corpus_without_weight_is_not_read(home: Path, tmp_path: Path) -> None:
    mixed = mixture_of(home, tmp_path, share=(1, 0))
    assert [shards.path for shards in mixed.shards] == [home / "first"]


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("[{folders: a, share: -1}, {folders: b, share: 2}]", r"share.*greater than or equal to 0"),
        ("[{folders: a, share: 0}, {folders: b, share: 0}]", "all zero"),
        (
            "[{folders: a, share: 1}, {folders: b, epochs: 2}]",
            "a share, or every one its epochs",
        ),
        ("[{folders: a, share: 1}, b]", "b"),
        ("[{folders: a}, {folders: b}]", "every corpus of a mixture a share"),
        ("[{folders: a, share: 1, epochs: 1}]", "not both"),
        ("[{folders: x/a, share: 1}, {folders: y/a, share: 1}]", "two corpora are called a"),
        ("[{folders: [], share: 1}]", "folders"),
    ],
)
def test_weights_that_say_nothing_are_one_line(shards: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(PretrainConfig, None, [f"data.shards={shards}"])
    assert "data.shards" in str(caught.value)
    assert "\n" not in str(caught.value)


def parts_of(folder: Path, **sources: Sequence[str]) -> str:
    written = {name: write_lines(folder / f"{name}.txt", lines).name for name, lines in sources.items()}
    parts = (
        f"{{name: {name}, share: {share}, source: {{kind: files, paths: [{path}]}}}}"
        for share, (name, path) in enumerate(written.items(), start=1)
    )
    return f"text.source={{kind: mixture, parts: [{', '.join(parts)}]}}"


def test_a_mixture_of_texts_is_that_of_their_shards_with_one_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["vocabulary.size=300", "text.heldout_share=0.2", "data.row_length=64", "evaluation.window_bytes=40"]
    config = read(PretrainConfig, None, [*settings, parts_of(tmp_path, talks=LINES[:200], books=LINES[200:])])
    mixed = open_corpus(config.data, config.text, config.vocabulary, tmp_path / "cache")
    whole = files(write_lines(tmp_path / "all.txt", LINES), heldout_share=0.2)
    learned, _ = learn_from(whole, config.vocabulary)
    assert vocabulary.sha256(learned) == mixed.manifest.tokenizer_sha256
    for name, lines in (("a", LINES[:200]), ("b", LINES[200:])):
        encode(tmp_path, name, lines, learned)
    apart = [corpus_at(config_of(tmp_path / name), 64, tmp_path / "cache") for name in ("a", "b")]
    assert [one.label for one in mixed.config] == ["talks", "books"]
    assert mixed.train.order == RowOrder(tuple(len(one.train) for one in apart), (1 / 3, 2 / 3))
    for side in ("train", "heldout"):
        assert segments(getattr(mixed, side)) == sum((segments(getattr(one, side)) for one in apart), Counter())
    again = open_corpus(config.data, config.text.absolute(), config.vocabulary, tmp_path / "cache")
    assert again.manifest == mixed.manifest
    assert [shards.path for shards in again.shards] == [shards.path for shards in mixed.shards]


def test_shards_of_a_mixture_are_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(vocabulary.serialize(LEARNED))
    arguments = ["--tokenizer", "tokenizer.json", "--output", "out", parts_of(tmp_path, a=LINES[:9], b=LINES[9:])]
    with pytest.raises(UserError, match=r"mixture.*encode each of its sources"):
        encode_command.main(arguments)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{name: a, share: 1, source: {kind: files, paths: b}}", "two corpora are called a"),
        ("{name: b, share: 1, epochs: 1, source: {kind: documentation}}", "not both"),
        ("{name: b, source: {kind: documentation}}", "give every corpus of a mixture a share"),
        ("{name: b, share: 1, source: {kind: mixture, parts: []}}", "kind must be one of documentation, files"),
    ],
)
def test_a_mixture_of_texts_that_does_not_fit_together_is_one_line(part: str, message: str) -> None:
    source = f"text.source={{kind: mixture, parts: [{{name: a, share: 1, source: {{kind: documentation}}}}, {part}]}}"
    with pytest.raises(UserError, match=message) as caught:
        read(PretrainConfig, None, [source])
    assert "\n" not in str(caught.value)


def test_a_share_too_small_to_be_read_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="second would be 1e-06 of the rows"):
        mixture_of(home, tmp_path, share=(1, 1e-6))


def test_the_fingerprint_of_several_folders_is_of_all_in_their_order(home: Path, tmp_path: Path) -> None:
    first, second = home / "first", home / "second"
    orders = [[first], [second], [first, second], [second, first]]
    prints = [corpus_at(config_of(*folders), 64, tmp_path).manifest.text_fingerprint for folders in orders]
    assert len(set(prints)) == len(prints)
    assert prints[0] == json.loads((first / "manifest.json").read_text())["text_fingerprint"]


def test_one_folder_needs_no_list() -> None:
    for value in ("a", "[a]"):
        assert read(PretrainConfig, None, [f"data.shards={value}"]).data.shards == (ShardsConfig(folders=("a",)),)
    assert read(PretrainConfig, None, ["data.shards=[a, b]"]).data.shards == (ShardsConfig(folders=("a", "b")),)
    assert PretrainConfig().data.shards is None
    with pytest.raises(UserError, match=r"data\.shards"):
        read(PretrainConfig, None, ["data.shards=[]"])


def opened(folder: Path, *names: str, tokenizer_path: Path | None = None) -> Corpus:
    data = DataConfig(row_length=64, shards=tuple(config_of(*(folder / name for name in names))))
    return open_corpus(data, TextConfig(), VocabularyConfig(), folder / "cache", tokenizer_path)


def test_a_folder_that_does_not_fit_the_first_is_named(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "first", tmp_path / "first")
    shutil.copytree(home / "second", tmp_path / "second")
    encode(tmp_path, "other", LINES[:100], tokenizer(LINES, size=290))
    encode(tmp_path, "runs", LINES[:100], segments="documents")
    with pytest.raises(UserError, match=r"data\.shards: \S*other .*tokenizer.* \S*first/tokenizer\.json"):
        opened(tmp_path, "first", "second", "other")
    with pytest.raises(UserError, match=r"data\.shards: \S*runs .*text\.segments = documents"):
        opened(tmp_path, "first", "runs")
    (tmp_path / "given.json").write_bytes(vocabulary.serialize(tokenizer(LINES, size=290)))
    with pytest.raises(UserError, match=r"data\.shards = \S*first, \S*second .* \S*given\.json"):
        opened(tmp_path, "first", "second", tokenizer_path=tmp_path / "given.json")
    with pytest.raises(UserError, match="none"):
        opened(tmp_path, "first", "none")


def test_the_same_text_is_not_read_from_two_folders(home: Path, tmp_path: Path) -> None:
    for name, source in (("first", "first"), ("second", "second"), ("copy", "second")):
        shutil.copytree(home / source, tmp_path / name)
    (tmp_path / "link").symlink_to("first")
    assert len(opened(tmp_path, "first", "link", "second", "first").shards) == 2
    with pytest.raises(UserError, match=r"data\.shards: \S*copy holds the same text as \S*second"):
        opened(tmp_path, "first", "second", "copy")


def test_a_run_on_several_folders_resumes_to_the_same_weights(home: Path, tmp_path: Path) -> None:
    for name in ("first", "second", "both"):
        shutil.copytree(home / name, tmp_path / "parts" / name)
    listed = PartList(fingerprint="", folders=("first", "second")).model_dump_json()
    (tmp_path / "parts" / "parts.json").write_text(listed, encoding="utf-8")
    settings = [word for word in TINY if not word.startswith(("text.", "vocabulary."))]
    for name, shards in (("whole", "parts"), ("resumed", "[parts/first, parts/second]")):
        done = run(tmp_path, *settings, "train.budget.steps=30", f"data.shards={shards}", f"name={name}")
        assert done.returncode == 0, done.stderr
    (whole,), (resumed,) = (list((tmp_path / "runs").glob(f"*-{name}")) for name in ("whole", "resumed"))
    for path in (whole, resumed):  # an export compares on the text of the run
        record = RunRecord.read(
            checkpoint.newest(path), vocabulary.load(tmp_path / "parts" / "first" / "tokenizer.json")
        )
        assert record.shards is not None
    (resumed / "results.json").unlink()
    shutil.rmtree(checkpoint.newest(resumed))
    done = run(tmp_path, "--resume", str(resumed))
    assert done.returncode == 0, done.stderr
    weights = [json.loads((path / "results.json").read_text())["weights_sha256"] for path in (whole, resumed)]
    assert weights[0] == weights[1]
    shutil.rmtree(tmp_path / "parts" / "second")
    (tmp_path / "parts" / "both").rename(tmp_path / "parts" / "second")
    (resumed / "results.json").unlink()
    assert "text" in mistake(run(tmp_path, "--resume", str(resumed)))


def test_a_corpus_of_a_mixture_of_which_nothing_is_hidden_is_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "large.txt", prose(300))
    write_lines(tmp_path / "small.txt", [f"Word {n}." for n in range(40)])
    parts = [
        {"name": name, "share": 1, "source": {"kind": "files", "paths": f"{name}.txt"}} for name in ("large", "small")
    ]
    settings = [word for word in TINY if not word.startswith("text.source")]
    settings += ["text.source.kind=mixture", f"text.source.parts={json.dumps(parts)}", "masking.rate=0.02"]
    settings += ["train.batch_rows=1", "vocabulary.size=300"]
    assert "no token of the held-out rows of small is hidden: raise text.heldout_share" in mistake(
        run(tmp_path, *settings)
    )


def test_a_run_on_a_mixture_tells_each_corpus_and_resumes_to_the_same_weights(home: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(home / name, tmp_path / name)
    settings = [word for word in TINY if not word.startswith(("text.", "vocabulary."))]
    settings += ["data.shards=[{folders: first, share: 3}, {folders: second, name: other, share: 1}]"]
    settings += ["train.budget.steps=30", "train.intervals.checkpoint_steps=20", "train.keep.newest=2"]
    assert (done := run(tmp_path, *settings, "name=mixed")).returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").glob("*-mixed")
    assert "  of other " in done.stdout
    results = json.loads((path / "results.json").read_text())
    assert set(results["heldout"]) == {
        "loss",
        "accuracy",
        "bits_per_byte",
        "complete_bits_per_byte",
        "bits_per_sentence",
        "loss/first",
        "loss/other",
    }
    for name in ("first", "other"):  # measured alone it has the loss that it has among the others
        measured = results["corpora"][name]
        assert measured["loss"] == pytest.approx(results["heldout"][f"loss/{name}"], rel=1e-5)
        assert 0 < measured["accuracy"] < 1
        assert 0 < measured["bits_per_byte"] < measured["complete_bits_per_byte"]
        sentences = heldout_sentences(tmp_path / ("second" if name == "other" else name))
        mean_bytes = sum(len(sentence.replace(" ", "").encode()) for sentence in sentences) / len(sentences)
        assert measured["bits_per_sentence"] == pytest.approx(measured["complete_bits_per_byte"] * mean_bytes)
    rows = 30 * 8
    assert results["corpora"]["first"]["tokens"] == pytest.approx(0.75 * results["tokens"], rel=0.05)
    sizes = {"first": 0.75, "other": 0.25}
    config = read(PretrainConfig, path / "config.yaml")
    order = open_corpus(config.data, config.text, config.vocabulary, tmp_path / "cache").train.order
    for (name, share), size in zip(sizes.items(), order.sizes, strict=True):
        assert results["corpora"][name]["epochs"] == pytest.approx(rows * share / size)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert all(record["loss/first"] > 0 and record["loss/other"] > 0 for record in records)
    assert [record["epochs/other"] for record in records if record["side"] == "train"][-1] > 0
    (path / "results.json").unlink()
    shutil.rmtree(checkpoint.newest(path))
    assert (done := run(tmp_path, "--resume", str(path))).returncode == 0, done.stderr
    assert json.loads((path / "results.json").read_text())["weights_sha256"] == results["weights_sha256"]
    changed = (path / "config.yaml").read_text().replace("share: 3.0", "share: 2.0")
    (path / "config.yaml").write_text(changed)
    (path / "results.json").unlink()
    assert "was changed since the run began" in mistake(run(tmp_path, "--resume", str(path)))


def test_a_corpus_that_is_read_very_often_is_told(home: Path, tmp_path: Path) -> None:
    settings = [word for word in TINY if not word.startswith(("text.", "vocabulary.", "train.budget"))]
    shards = f"data.shards=[{{folders: {home / 'first'}, share: 99}}, {{folders: {home / 'second'}, share: 1}}]"
    done = run(tmp_path, "--dry-run", *settings, shards, "train.budget.steps=100000")
    assert done.returncode == 0, done.stderr
    assert "first will be read" in done.stderr
    assert "second will be read" not in done.stderr


def test_a_folder_is_read_once_however_many_names_it_has(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "first", tmp_path / "first")
    (tmp_path / "link").symlink_to("first")
    once, often = opened(tmp_path, "first"), opened(tmp_path, "first", "link", "first/../first", "first")
    assert often.manifest == once.manifest
    assert len(often.train) == len(once.train)
