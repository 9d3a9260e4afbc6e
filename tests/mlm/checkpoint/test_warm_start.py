"""Task-adaptive pretraining: a run that starts from another run's weights."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from configs import UserError, read
from mlm import pretrain as entry
from mlm.build import build
from mlm.checkpoint import checkpoint
from mlm.checkpoint.manifest import MANIFEST
from mlm.config import PretrainConfig
from tests.mlm.runs import TINY, heldout_curve, results, write_corpus
from tests.mlm.samples import CPU

START = ("vocabulary.lowercase=true", "model.encoder.gated=true", "model.encoder.positions.kind=learned")
TEXT = (
    "text.source.kind=files",
    "text.source.paths=tweets.txt",
    "text.heldout_share=0.1",
    "text.segments=documents",
    "evaluation.window_bytes=40",
    "evaluation.words=0",
    "train.batch_rows=8",
    "train.intervals.log_steps=10",
    "train.intervals.checkpoint_steps=20",
)
"""Nothing in it says what model, vocabulary or rows the start has."""
STANDING_STILL = ("train.budget.steps=1", "optim.lr=1e-60")


def pretrain(folder: Path, *arguments: str) -> Path:
    """Call the command in `folder` and return the directory of its run."""
    before = set((folder / "runs").glob("20*"))
    with contextlib.chdir(folder):
        entry.main(arguments)
    (path,) = set((folder / "runs").glob("20*")) - before
    return path


def write_tweets(path: Path) -> None:
    """Write messages in words that the other corpus has too few of."""
    chance = random.Random(3)
    ends = {"Fire": "RT stay out of the forest", "Flood": "RT get up on the roof", "Storm": "RT go down and hide"}
    words = [chance.choice(list(ends)) for _ in range(1500)]
    lines = [f"{word} near town {number}! #{word}Alert {ends[word]}" for number, word in enumerate(words)]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two corpora, a run on the first, and an adapted one on the second."""
    folder = tmp_path_factory.mktemp("home")
    write_corpus(folder / "corpus.txt")
    write_tweets(folder / "tweets.txt")
    settings = ("train.budget.steps=40", "optim.lr=5e-3", "train.intervals.evaluate_steps=20", "evaluation.words=0")
    start = pretrain(folder, *TINY, *START, *settings, "name=start", "train.intervals.checkpoint_steps=20")
    pretrain(folder, *TEXT, *settings, "name=adapted", f"start_from=runs/{start.name}", "model.encoder.gated=true")
    return folder


@pytest.fixture(scope="module")
def start(home: Path) -> Path:
    """Return the run that the other starts from."""
    return next((home / "runs").glob("*-start"))


@pytest.fixture(scope="module")
def adapted(home: Path) -> Path:
    """Return the run that started from the other."""
    return next((home / "runs").glob("*-adapted"))


def test_a_step_at_rate_zero_changes_neither_weights_nor_loss(home: Path, start: Path) -> None:
    text = (*TINY[:3], "evaluation.words=0", "train.batch_rows=8")
    still = pretrain(home, *text, *STANDING_STILL, "name=still", f"start_from={start}")
    assert results(still)["weights_sha256"] == results(start)["weights_sha256"]
    assert results(still)["heldout"] == results(start)["heldout"]
    assert results(still)["heldout_at_start"]["loss"] == results(start)["heldout"]["loss"]
    assert heldout_curve(still)[0] == (0, results(start)["heldout"]["loss"])


def test_training_begins_with_the_starts_weights_bit_for_bit(home: Path, start: Path) -> None:
    from mlm.checkpoint import warm_start

    with contextlib.chdir(home):
        recipe = warm_start.resolve(read(PretrainConfig, None, [*TEXT, f"start_from={start}"]))
        model = build(recipe, CPU).model
    expected = load_file(checkpoint.newest(start) / checkpoint.WEIGHTS)
    drawn = model.state_dict()["encoder.embeddings.tokens.weight"].clone()
    assert not torch.equal(drawn, expected["encoder.embeddings.tokens.weight"])
    warm_start.load_start(recipe, model)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_warm_start_lowers_the_loss_on_the_new_text(
    home: Path, start: Path, adapted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = results(adapted)
    assert values["heldout_at_start"]["loss"] == heldout_curve(adapted)[0][1]
    assert values["heldout"]["loss"] < 0.7 * values["heldout_at_start"]["loss"]
    assert "heldout_at_start" not in results(start)
    pretrain(home, *TEXT, *STANDING_STILL, "name=shown", f"start_from={adapted}")
    shown = [line.split()[-2] for line in capsys.readouterr().out.splitlines() if line.startswith(("this", "initial"))]
    assert shown == [f"{values['heldout']['loss']:.3f}"] * 2


def test_the_start_is_recorded_and_decides_the_model(start: Path, adapted: Path) -> None:
    folder = checkpoint.newest(start)
    environment = json.loads((adapted / "environment.json").read_text())
    assert environment["started_from"] == {
        "checkpoint": str(folder.resolve()),
        "weights_sha256": results(start)["weights_sha256"],
    }
    theirs, mine = read(PretrainConfig, start / checkpoint.CONFIG), read(PretrainConfig, adapted / checkpoint.CONFIG)
    assert (mine.model, mine.vocabulary) == (theirs.model, theirs.vocabulary)
    assert mine.data.row_length == theirs.data.row_length == 64
    assert mine.text.segments == "documents"
    tokenizers = {(checkpoint.newest(path) / checkpoint.TOKENIZER).read_bytes() for path in (start, adapted)}
    assert len(tokenizers) == 1, "other tokens, or another normalisation"


def test_a_resumed_run_needs_neither_its_start_nor_the_cache(home: Path, adapted: Path, tmp_path: Path) -> None:
    shutil.copy(home / "tweets.txt", tmp_path)
    shutil.copytree(adapted, path := tmp_path / "runs" / adapted.name)
    (path / "results.json").unlink()
    shutil.rmtree(checkpoint.newest(path))
    with contextlib.chdir(tmp_path):  # where there is no runs/*-start
        entry.main(["--resume", str(path)])
    for name in ("weights_sha256", "heldout", "heldout_at_start", "baselines"):
        assert results(path)[name] == results(adapted)[name]
    assert heldout_curve(path) == heldout_curve(adapted)


def test_a_checkpoint_may_be_named_and_is_kept_in_the_printed_config(
    home: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = checkpoint.completed(start)
    for named, folder in ((start, last), (first, first)):
        with contextlib.chdir(home):
            entry.main([*TEXT, f"start_from={named}", "--print-config"])
            printed = capsys.readouterr().out
            (home / "printed.yaml").write_text(printed)
            entry.main(["printed.yaml", "--print-config"])
        assert capsys.readouterr().out == printed
        recipe = read(PretrainConfig, home / "printed.yaml")
        assert recipe.start_from == str(folder)
        assert recipe.model.encoder.gated


def test_a_dry_run_shows_the_starts_model_on_the_new_text(
    home: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set((home / "runs").iterdir())
    with contextlib.chdir(home):
        entry.main([*TEXT, f"start_from={start}", "--dry-run"])
    shown = capsys.readouterr().out
    weights = load_file(checkpoint.newest(start) / checkpoint.WEIGHTS)
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["total"]]
    assert line.split()[-1] == f"{sum(tensor.numel() for tensor in weights.values()):,}"
    assert "rows of 64" in shown
    rows = shown.partition("first rows")[2].partition("\n")[2].replace("[MASK]", "")
    assert "#" in rows
    assert rows == rows.lower(), "the start's tokenizer makes text lower case"
    assert set((home / "runs").iterdir()) == before


def test_settings_equal_to_the_starts_and_its_tokenizer_file_are_no_conflict(
    home: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(checkpoint.newest(start) / checkpoint.TOKENIZER, home / "same.json")
    with contextlib.chdir(home):
        entry.main(
            [
                *TEXT,
                *TINY[3:5],
                *TINY[7:11],
                *START,
                "data.tokenizer=same.json",
                f"start_from={start}",
                "--print-config",
            ]
        )
        mine = capsys.readouterr().out
        entry.main([*TEXT, f"start_from={start}", "--print-config"])
    assert capsys.readouterr().out == mine


def unsave(run: Path) -> None:
    """Remove every checkpoint."""
    for path in checkpoint.completed(run):
        shutil.rmtree(path)


def damage(name: str) -> Callable[[Path], None]:
    """Return what cuts a byte off a file of a run's newest checkpoint."""

    def cut(run: Path) -> None:
        path = checkpoint.newest(run) / name
        path.write_bytes(path.read_bytes()[:-1])

    return cut


def leave(run: Path) -> None:
    """Change nothing."""


def finetuned(run: Path) -> None:
    """Make it look like the run of a classifier, which keeps its weights elsewhere."""
    shutil.rmtree(run / "checkpoints")
    (run / "model").mkdir()


MISTAKES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no such run": (leave, "start_from=runs/nowhere", r"^start_from = runs/nowhere\b"),
    "no checkpoint": (unsave, "", r"^start_from = .*/run .*checkpoint.* mlm\.pretrain"),
    "a fine-tuning run": (finetuned, "", r"^start_from = .*/run .*checkpoint.* finetune"),
    "damaged weights": (damage(checkpoint.WEIGHTS), "", r"run/.*/weights\.safetensors"),
    "damaged tokenizer": (damage(checkpoint.TOKENIZER), "", r"run/.*/tokenizer\.json"),
    "damaged config": (damage(checkpoint.CONFIG), "", r"run/.*/config\.yaml"),
    "damaged manifest": (damage(MANIFEST), "", r"run/.*/manifest\.json"),
    "another width": (
        leave,
        "model.encoder.width=256",
        r"^model\.encoder\.width = 256 .*\b32\b.*start_from = .*remove model\.encoder\.width",
    ),
    "other positions": (leave, "model.encoder.positions.kind=sinusoidal", r"^model\.encoder\.positions\.kind = sinus"),
    "settings of its own kind": (leave, "model.encoder.positions.theta=5", r"^model\.encoder\.positions\.theta = 5"),
    "another row length": (leave, "data.row_length=256", r"^data\.row_length = 256 .*\b64\b.*positions are learned"),
    "another vocabulary": (leave, "vocabulary.size=400", r"^vocabulary\.size = 400 .*\b300\b"),
    "another normalisation": (leave, "vocabulary.normalisation=nfc", r"^vocabulary\.normalisation = nfc\b"),
    "no such tokenizer": (leave, "data.tokenizer=nowhere.json", r"nowhere\.json"),
    "window over the start's row": (
        leave,
        "evaluation.window_bytes=90 evaluation.words=9",
        r"evaluation\.window_bytes = 90 .*data\.row_length = 64.*start_from",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_makes_no_run(
    name: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, argument, pattern = MISTAKES[name]
    copied = shutil.copytree(start, tmp_path / "run")
    prepare(copied)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=pattern) as caught:
        entry.main([*TEXT, f"start_from={copied}", *argument.split()])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_rotary_rows_may_grow_and_the_base_may_change(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("train.budget.steps=2", "evaluation.words=0", "name=short")
    short = pretrain(home, *TINY, *settings, "train.intervals.checkpoint_steps=2")
    longer = ("data.row_length=512", "model.encoder.positions={kind: rotary, theta: 160000}", "train.batch_rows=1")
    path = pretrain(home, *TEXT[:-3], *settings[:-1], *longer, f"start_from={short}", "name=longer")
    config, started = read(PretrainConfig, path / checkpoint.CONFIG), read(PretrainConfig, short / checkpoint.CONFIG)
    assert (config.data.row_length, started.data.row_length) == (512, 64)
    assert config.model.encoder == started.model.encoder.model_copy(
        update={"positions": config.model.encoder.positions}
    )
    model, _, _ = checkpoint.load_model(checkpoint.resolve(path), torch.device("cpu"))
    assert model.encoder.rotary is not None
    frequencies = model.encoder.rotary.inverse_frequency_k
    assert frequencies.tolist() == pytest.approx([160000 ** (-plane / 8) for plane in range(8)])
    with contextlib.chdir(home):
        entry.main([*TEXT, f"start_from={path}", "--print-config"])
    shown = capsys.readouterr().out
    assert "row_length: 512" in shown
    assert "theta: 160000.0" in shown
    with contextlib.chdir(home), pytest.raises(UserError, match=r"^data\.row_length = 256 .*\b512\b"):
        entry.main([*TEXT, f"start_from={path}", "data.row_length=256"])


def test_another_tokenizer_is_refused(home: Path, start: Path, tmp_path: Path) -> None:
    from tokenizer import vocabulary

    other = vocabulary.learn(iter(["another text " * 3]), vocabulary.VocabularyConfig(size=265))
    (tmp_path / "other.json").write_bytes(vocabulary.serialize(other))
    arguments = [*TEXT, f"data.tokenizer={tmp_path / 'other.json'}", f"start_from={start}"]
    with contextlib.chdir(home), pytest.raises(UserError, match=r"^data\.tokenizer = .*other\.json\b"):
        entry.main(arguments)
