"""Runs leave as folders that plain transformers opens, and give the same scores there."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoModelForMaskedLM

from configs import UserError, read
from mlm import export as entry
from mlm.checkpoint import checkpoint, weights
from mlm.checkpoint.manifest import seal
from mlm.config import PretrainConfig
from mlm.distributed.world import World
from mlm.evaluation import fill_blanks
from mlm.experiment import PretrainRun, pretrain, resume
from mlm.interop.export import architecture_of, compare, write
from mlm.model.encoder import EncoderConfig, LocalAttention
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.model.initialize import initialize
from mlm.tracking import exported_run
from tests.mlm.runs import TINY, write_corpus
from tests.mlm.samples import Lines, segment_mask_of
from tokenizer import vocabulary
from tokenizer.vocabulary import VocabularyConfig

pytest.importorskip("transformers", reason="exports need transformers")

RECIPES = sorted(Path(__file__).parents[3].glob("configs/pretrain/*.yaml"))
SMALL = (
    "model.encoder.width=16",
    "model.encoder.heads=2",
    "model.encoder.feedforward_width=24",
    "model.encoder.layers=3",
    "data.row_length=32",
    "evaluation.window_bytes=29",
)
TEXTS = ("the cat sat", "the dog barks at the cat in the house", "rain", "a bird sings and the horse neighs in a barn")
BLANK = "In barn number 7 the [MASK] sleeps."


@pytest.fixture
def messages() -> Iterator[list[str]]:
    lines, logger = list[str](), logging.getLogger("mlm")
    logger.addHandler(handler := Lines(lines))
    yield lines
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    write_corpus(folder / "corpus.txt")
    return folder


def config_in(home: Path, *overrides: str) -> PretrainConfig:
    paths = (f"text.source.paths={home / 'corpus.txt'}", f"runs={home / 'runs'}")
    short = ("train.budget.steps=30", "train.precision=float32", "train.keep.best=false")
    return read(PretrainConfig, None, [*TINY, *short, *paths, *overrides])


@pytest.fixture(scope="module")
def run(home: Path) -> PretrainRun:
    """Return a finished run, exported at each of its three checkpoints, of which two are kept."""
    return pretrain(config_in(home, "name=leaves", "export=checkpoints"))


@pytest.fixture(scope="module")
def exported(run: PretrainRun) -> Path:
    return run.path / "export" / run.checkpoint.name


def model_of(config: ModelConfig, vocabulary_size: int, row_length: int) -> MaskedLanguageModel:
    """Return a model none of whose weights is 0 or 1."""
    model = MaskedLanguageModel(config, vocabulary_size, row_length)
    initialize(model, config.encoder, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model.eval()


def leaves_exactly(
    config: ModelConfig, folder: Path, read_by: VocabularyConfig | None = None, row_length: int = 32
) -> None:
    tokenizer = vocabulary.learn(iter(TEXTS * 3), (read_by or VocabularyConfig()).model_copy(update={"size": 270}))
    model = model_of(config, tokenizer.get_vocab_size(), row_length)
    folder.mkdir()
    write(folder, model, tokenizer, config, row_length)
    compared = compare(folder, model, tokenizer, row_length, TEXTS)
    assert compared.heldout
    assert all(found.largest <= 1e-5 * found.size for found in compared.differences.values())
    # The same without the product's own comparison: padded texts in transformers, each alone here.
    encoded = [tokenizer.encode(text).ids[:row_length] for text in TEXTS]
    rows_BL = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in encoded], batch_first=True)
    real_BL = torch.tensor([[place < len(ids) for place in range(rows_BL.shape[1])] for ids in encoded])
    theirs_BLV = AutoModelForMaskedLM.from_pretrained(folder)(rows_BL, attention_mask=real_BL.long()).logits
    for logits_LV, ids in zip(theirs_BLV, encoded, strict=True):
        ours_LV = model(torch.tensor([ids]), segment_mask_of([[len(ids)]], len(ids)), torch.arange(len(ids))[None])
        torch.testing.assert_close(logits_LV[: len(ids)], ours_LV, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_leaves_exactly_or_is_refused_with_the_settings_that_let_it_leave(
    recipe: Path, tmp_path: Path
) -> None:
    overrides = list(SMALL)
    config = read(PretrainConfig, recipe, overrides)
    if recipe.stem.startswith("vanilla"):
        with pytest.raises(UserError, match="no exact counterpart") as refused:
            architecture_of(config.model)
        settings = re.findall(r"model\.[\w.]+=\w+", str(refused.value))
        assert settings
        config = read(PretrainConfig, recipe, [*overrides, *settings])
    leaves_exactly(config.model, tmp_path / "out", config.vocabulary)


@pytest.mark.parametrize(
    "encoder",
    [
        {"local_attention": LocalAttention(window=4, global_every=2, theta=500.0), "layers": 5},
        {"local_attention": LocalAttention(window=6, global_every=3), "gated": True, "biases": False, "layers": 4},
        {"norm_epsilon": 1e-6, "activation": "relu", "biases": False},
    ],
)
@pytest.mark.parametrize("transform", [False, True])
def test_every_part_of_a_modernbert_leaves_exactly(encoder: dict[str, Any], transform: bool, tmp_path: Path) -> None:
    shape = {"width": 16, "heads": 2, "feedforward_width": 24, "layers": 2, **encoder}
    leaves_exactly(ModelConfig(encoder=EncoderConfig(**shape), transform=transform), tmp_path / "out")


PROGRAM = """
import json, re, sys
for name in ("configs", "tokenizer", "mlm", "finetune"):
    sys.modules[name] = None  # importing it is an error, whatever is installed
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForMaskedLM
blank, texts = json.loads(sys.argv[1])
code = re.search("```python\\n(.*?)```", open("README.md", encoding="utf-8").read(), re.DOTALL).group(1)
example = {}
exec(code, example)
tokenizer = example["tokenizer"]
classifier = AutoModelForSequenceClassification.from_pretrained(".", num_labels=2)
inputs = tokenizer(texts, padding=True, return_tensors="pt")
before = classifier.model.embeddings.tok_embeddings.weight.detach().clone()
classifier(**inputs, labels=torch.zeros(len(texts)).long()).loss.backward()
torch.optim.SGD(classifier.parameters(), 1.0).step()
print(json.dumps({
    "guesses": [guess["token"] for guess in example["fill_mask"](blank)],
    "ids": tokenizer(texts)["input_ids"],
    "given": sorted(inputs),
    "special": [getattr(tokenizer, f"{role}_token") for role in ("pad", "unk", "cls", "sep", "mask")],
    "longest": tokenizer.model_max_length,
    "sides": [tokenizer.padding_side, tokenizer.truncation_side],
    "trained": not torch.equal(before, classifier.model.embeddings.tok_embeddings.weight),
    "pooling": classifier.config.classifier_pooling,
}))
"""


def test_the_model_card_runs_and_the_folder_opens_where_there_is_nothing_but_transformers(
    run: PretrainRun, exported: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / 'a "quoted" name')
    texts = ["In barn number 41 the cat sleeps, and when it wakes", "Zo\u00eb said [MASK].", "dog"]
    arguments = json.dumps([BLANK, texts])
    process = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    batch = fill_blanks.read_blanks(BLANK, run.tokenizer, 64)
    (guesses,) = fill_blanks.guess(run.model, batch, run.tokenizer, World(torch.device("cpu"), torch.float32), 5)
    assert [run.tokenizer.decode([token]) for token in found["guesses"]] == [guess.token for guess in guesses]
    run.tokenizer.encode_special_tokens = False  # [MASK] in a text is the mask to transformers
    assert found["ids"] == [run.tokenizer.encode(text).ids for text in texts]
    assert found["given"] == ["attention_mask", "input_ids"]
    assert found["special"] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (found["longest"], found["sides"]) == (64, ["right", "right"])
    assert found["trained"]
    assert found["pooling"] == "mean"


def test_sentence_transformers_opens_the_folder_and_trains_it(exported: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="it is not installed")
    model = library.SentenceTransformer(str(exported), device="cpu")
    hidden = model[0].model(**{name: ids for name, ids in model.tokenize(["the cat"]).items() if torch.is_tensor(ids)})
    vector = model.encode(["the cat"], convert_to_tensor=True, show_progress_bar=False)
    assert torch.allclose(vector, hidden.last_hidden_state.mean(dim=1), atol=1e-5)
    features = model.tokenize(["the cat sleeps", "the dog barks", "a bird"])
    model(features)["sentence_embedding"].square().sum().backward()
    assert all(weight.grad is not None for name, weight in model[0].model.named_parameters() if "Wqkv" in name)


def test_exports_of_checkpoints_are_kept_as_long_as_these(run: PretrainRun, exported: Path) -> None:
    kept = [folder.name for folder in checkpoint.completed(run.path)]
    assert kept == ["step-000000020", "step-000000030"]
    assert sorted(path.name for path in exported.parent.iterdir()) == kept
    names = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert all(sorted(path.name for path in (exported.parent / name).iterdir()) == names for name in kept)


def test_exports_during_training_change_no_weight(run: PretrainRun, home: Path) -> None:
    plain = pretrain(config_in(home, "name=plain", "evaluation.words=0"))
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], weight), name


def test_the_model_card_says_what_the_run_recorded_and_no_path(run: PretrainRun, exported: Path, home: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "fill-mask")
    assert card.data.to_dict()["mask_token"] == "[MASK]"
    assert run.results is not None
    heldout, bigram = run.results["heldout"], run.results["baselines"]["bigram"]
    for said in (
        f"| this encoder | {heldout['loss']:.3f} | {heldout['accuracy']:.1%} |",
        f"| bigram (Kneser-Ney) | {bigram['loss']:.3f} | {bigram['accuracy']:.1%} |",
        f"- tokens: {run.results['tokens']:,}",
        "- steps: 30",
        "corpus.txt",
        "No license",
    ):
        assert said in card.content
    assert str(home) not in card.content
    assert "language" not in card.data.to_dict()
    earlier = ModelCard.load(exported.parent / "step-000000020" / "README.md").content
    assert "bigram" not in earlier
    assert "Masked loss" in earlier


def test_the_command_exports_a_checkpoint_of_a_run_whose_text_is_gone(
    run: PretrainRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "elsewhere" / "copy"
    shutil.copytree(run.path, alone, ignore=shutil.ignore_patterns("environment.json", "results.json", "export"))
    out = tmp_path / "out"
    entry.main([str(alone / "checkpoints" / "step-000000020"), str(out), "--licence", "apache-2.0", "--language", "en"])
    shown = capsys.readouterr().out
    assert "general sentences" in shown
    differences = re.findall(r"(\S+) \(values", shown)
    assert differences
    assert all(float(found) <= 1e-4 for found in differences)
    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.language) == ("apache-2.0", "en")
    assert "not recorded: device, processes" in card.content
    (alone / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json"):
        exported_run.export(alone, tmp_path / "other")


def test_without_a_name_the_run_that_was_started_last_is_exported(
    run: PretrainRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for started, name in enumerate(("later", "earlier")):
        copy = shutil.copytree(run.path, tmp_path / "runs" / name, ignore=shutil.ignore_patterns("export"))
        os.utime(copy / "config.yaml", (1e9 - started, 1e9 - started))
    monkeypatch.chdir(tmp_path)
    entry.main(["encoder"])
    assert "run: runs/later\n" in capsys.readouterr().err
    assert (tmp_path / "encoder" / "model.safetensors").exists()


def test_what_cannot_leave_is_one_line_and_nothing_is_written(run: PretrainRun, exported: Path, tmp_path: Path) -> None:
    before = sorted(exported.iterdir())
    finetuned = Path(__file__).parents[2] / "earlier" / "runs" / "finetuned"
    for arguments, named in (
        ([run.path, exported], "exists already"),
        ([run.path, tmp_path / "no" / "out"], "make"),
        ([finetuned, tmp_path / "out"], "finetune.export"),
        ([tmp_path, tmp_path / "out"], "no checkpoint"),
        ([run.path, tmp_path / "out", "--licence", "my own"], "--license"),
    ):
        with pytest.raises(UserError, match=named):
            entry.main(list(map(str, arguments)))
    assert sorted(exported.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_would_differ_leaves_nothing_behind(run: PretrainRun, tmp_path: Path) -> None:
    partial, folder = tmp_path / "partial", tmp_path / "step-000000030"
    shutil.copytree(run.checkpoint, partial, ignore=shutil.ignore_patterns("manifest.json", "training_state.pt"))
    tensors = weights.read(partial / checkpoint.WEIGHTS)
    tensors["encoder.final_norm.weight"][0] = 1e-20  # the identity head divides by it
    weights.write(partial / checkpoint.WEIGHTS, tensors)
    seal(partial, folder, 30)
    (tmp_path / "former").mkdir()
    for out in (tmp_path / "out", tmp_path / "former"):
        with pytest.raises(UserError, match=r"nothing is written.*model\.transform=true"):
            exported_run.export(folder, out, replace=out.exists())
    assert sorted(tmp_path.iterdir()) == [tmp_path / "former", folder]


def test_a_run_is_exported_at_its_end_and_a_failure_is_a_warning(home: Path, messages: list[str]) -> None:
    steps = ("train.budget.steps=2", "evaluation.words=0", "export=end")
    good = pretrain(config_in(home, "name=good", *steps))
    assert (good.path / "export" / "model.safetensors").is_file()
    assert not any("NOT EXPORTED" in line for line in messages)
    written = (good.path / "export" / "model.safetensors").stat().st_mtime_ns
    resume(good.path)
    assert (good.path / "export" / "model.safetensors").stat().st_mtime_ns == written
    shutil.rmtree(good.path / "export")  # as of a run that was killed while it was exported
    resume(good.path)
    assert (good.path / "export" / "model.safetensors").is_file()
    # Of an identity head, which is exact where epsilon is small beside the variance alone.
    bad = pretrain(config_in(home, "name=bad", "model.encoder.norm_epsilon=0.5", *steps))
    assert bad.results is not None
    assert not (bad.path / "export").exists()
    assert [line for line in messages if "NOT EXPORTED" in line and "model.transform=true" in line]


def test_a_run_that_could_not_be_exported_is_not_begun(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted((home / "runs").glob("*-refused"))
    positions = ("model.encoder.positions.kind=sinusoidal",)
    with pytest.raises(UserError, match=r"model\.encoder\.positions\.kind=rotary"):
        pretrain(config_in(home, "name=refused", "export=end", *positions))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install"):
        pretrain(config_in(home, "name=refused", "export=checkpoints"))
    assert sorted((home / "runs").glob("*-refused")) == before
