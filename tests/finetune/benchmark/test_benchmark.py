"""The benchmark runs, counts rightly, and measures the same model on both sides; speed itself is not tested."""

import importlib.util
import json
import math
from dataclasses import replace
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs import UserError
from finetune.benchmark import __main__, hf_trainer
from finetune.benchmark.speed import CASES, Bench, prepare, train_ours
from finetune.training.classification import batch_of, predict
from mlm.benchmark import measure
from mlm.benchmark.hf_trainer import trainer
from mlm.benchmark.speed import COUNTED_STEPS, WARMUP_STEPS, Meter
from tests.finetune import samples, tiny_published
from tests.mlm.benchmark.samples import in_this_process

TEXTS = 10
BATCH = 4


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", 60)


@pytest.fixture(scope="module")
def bench(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return what the command prepares, with ten examples of different lengths in batches of four."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["--quick", "--file", str(table), "--label", "target", "--vocabulary", "300", "--output", str(folder)]
    made = prepare(__main__.parse(words))
    recipe = made.recipe.model_copy(update={"train": made.recipe.train.model_copy(update={"batch_examples": BATCH})})
    train = made.data.train.take(range(TEXTS))
    scale = replace(made.scale, seconds=1e-9, batch_examples=BATCH)
    return replace(made, data=replace(made.data, train=train), scale=scale, recipe=recipe)


class Counts(Meter):
    """A meter that keeps the numbers it was given."""

    def __init__(self) -> None:
        super().__init__(1e-9, attrgetter("targets"))
        self.seen: list[int] = []

    def after_step(self, total: int, steps: int = 1) -> bool:
        self.seen.append(total)
        return super().after_step(total, steps)


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """Set every dropout to 0 in a model that stays in training mode."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0  # type: ignore[assignment]
    return model.train()


def test_the_command_writes_what_was_measured_and_on_what(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "in_fresh_process", in_this_process)
    words = ["--quick", "--repeats", "1", "--seconds", "0.05", "--file", str(table), "--label", "target"]
    __main__.main([*words, "--vocabulary", "300", "--output", str(tmp_path)])
    found: dict[str, Any] = json.loads((tmp_path / "benchmark.json").read_text())
    assert {"device", "threads", "command", "precision", "scale", "recipe", "mean_tokens"} <= set(found)
    assert {"torch", "transformers", "accelerate"} <= set(found["versions"])
    assert (found["encoder"]["model_type"], found["encoder"]["vocab_size"]) == ("bert", 300)
    assert (found["training_examples"], found["longest"]) == (60, 64)
    assert [case["name"] for case in found["cases"]] == list(CASES)
    printed = capsys.readouterr().out
    for case in found["cases"]:
        assert case["unit"] == "examples/s"
        assert case["counted"]
        assert case["name"] in printed
        for side in ("ours", "theirs", "ratio"):
            assert 0 < case[side]["lowest"] <= case[side]["median"] <= case[side]["highest"] < math.inf
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_both_sides_count_the_examples_that_were_trained_on(bench: Bench) -> None:
    # An epoch is two batches of 4 and one of 2: whoever counted full batches, or those fetched ahead, would say 12.
    ours, fixed, dynamic = Counts(), Counts(), Counts()
    train_ours(bench, ours)
    paddings: tuple[tuple[hf_trainer.Padding, Counts], ...] = (("fixed", fixed), ("batch", dynamic))
    for padding, counts in paddings:
        sides = *bench.theirs(bench.train, padding), counts.after_step, lambda batch: len(batch["labels"])
        trainer(*sides, per_device_train_batch_size=BATCH).train()
    steps = WARMUP_STEPS + COUNTED_STEPS
    expected = list(accumulate(([4, 4, 2] * steps)[:steps]))
    assert (
        fixed.seen == dynamic.seen == ours.seen[: len(expected)] == expected
    )  # our loop stops a step after it is told
    assert all(meter.rate > 0 for meter in (ours, fixed, dynamic))


def test_theirs_is_padded_as_the_case_says_and_holds_the_same_tokens(bench: Bench) -> None:
    lengths = [len(tokens.ids) for tokens in bench.train.tokens]
    assert len(set(lengths)) > 1
    for padding, length in (("fixed", 64), ("batch", max(lengths))):
        _, collate, rows = bench.theirs(bench.train, padding)  # type: ignore[arg-type]
        batch = collate(list(rows))
        assert batch["input_ids"].shape == (TEXTS, length)
        assert batch["attention_mask"].sum(dim=1).tolist() == lengths
        assert batch["labels"].tolist() == bench.train.examples.labels.tolist()
        for row, tokens in zip(batch["input_ids"].tolist(), bench.train.tokens, strict=True):
            assert tuple(row[: len(tokens.ids)]) == tokens.ids


def test_both_sides_are_the_same_model(bench: Bench) -> None:
    # The same loss and gradients, in training mode with dropout 0, though theirs is padded further.
    encoded = bench.train
    their_model, collate, rows = bench.theirs(encoded, "fixed")
    ours, theirs = without_dropout(bench.our_model()), without_dropout(their_model)
    batch = batch_of(encoded.tokens, encoded.examples.labels, bench.encoder.pad_id, bench.world.device)
    logits_BC = ours(batch.ids_BL, batch.real_BL, batch.types_BL)
    our_loss = torch.nn.functional.cross_entropy(logits_BC, batch.labels_B)
    their_loss = theirs(**collate(list(rows))).loss
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-5, atol=1e-6)
    torch.autograd.backward([our_loss, their_loss])
    sides = [sorted(float(p.grad.norm()) for p in side.parameters() if p.grad is not None) for side in (ours, theirs)]
    assert len(sides[0]) == len(list(ours.parameters())) == len(list(theirs.parameters()))
    np.testing.assert_allclose(sides[0], sides[1], rtol=1e-3, atol=1e-6)


def test_both_sides_drop_out_alike(bench: Bench) -> None:
    def rates(model: torch.nn.Module) -> list[float]:
        return sorted(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))

    assert rates(bench.our_model()) == rates(bench.theirs(bench.train, "batch")[0])
    assert set(rates(bench.our_model())) == {0.1}


def test_both_sides_predict_the_same(bench: Bench) -> None:
    world = replace(bench.world, dtype=torch.float32)
    ours_NC = predict(bench.our_model().eval(), bench.train.tokens, bench.encoder.pad_id, world)
    model, collate, rows = bench.theirs(bench.train, "fixed")
    found: Any = trainer(model, collate, per_device_eval_batch_size=BATCH).predict(rows)
    theirs_NC = torch.tensor(found.predictions).double().softmax(dim=-1).numpy()
    np.testing.assert_allclose(ours_NC, theirs_NC, atol=1e-5)


def test_a_published_encoder_may_be_named(table: Path, tmp_path: Path) -> None:
    folder = tiny_published.save(tmp_path / "bert", "bert")
    words = ["--quick", "--file", str(table), "--label", "target", "--encoder", str(folder), "--output", str(tmp_path)]
    bench = prepare(__main__.parse(words))
    assert bench.longest == tiny_published.LONGEST  # its positions end before 64
    own = tiny_published.weights(tiny_published.load(folder))
    assert tiny_published.equal(tiny_published.weights(bench.our_model().encoder), own)
    other = tiny_published.save(tmp_path / "electra", "electra")
    words[words.index(str(folder))] = str(other)
    with pytest.raises(UserError, match=r"'electra'.*take one of type 'bert'"):
        prepare(__main__.parse(words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainign/padded-to-64"], "did you mean training/padded-to-64"),
        (["--repeats", "0"], "--repeats: '0' is no whole number above 0"),
        (["--seconds", "0"], "--seconds: must be over 0"),
        (["--seconds", "nan"], "--seconds: must be over 0"),
    ],
)
def test_mistakes_are_said_in_a_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        __main__.main(words)


def test_a_missing_extra_and_a_vocabulary_out_of_range_are_said_in_a_line(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--quick", "--file", str(table), "--label", "target", "--output", str(tmp_path)]
    with pytest.raises(UserError, match="--vocabulary 5: must be 261 to"):
        __main__.main([*words, "--vocabulary", "5"])
    with pytest.raises(UserError, match="too small for the vocabulary"):
        __main__.main([*words, "--vocabulary", "5000"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"transformers, accelerate.*pip install .*\[bench\]'"):
        __main__.main(words)
