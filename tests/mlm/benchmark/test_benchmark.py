"""The benchmark runs and counts rightly; the measured values are not tested."""

import contextlib
import importlib.util
import io
import json
import math
import os
import pickle
import random
import re
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from configs import UserError, read
from mlm.benchmark import __main__, data, hf_models, hf_trainer, loss, measure, speed
from mlm.benchmark.measure import Case, Spread, alternate, as_users_run_it, in_fresh_process, times_a_second
from mlm.benchmark.pairs import judge_one_by_one
from mlm.benchmark.speed import COUNTED_STEPS, WARMUP_STEPS, Bench, Meter, needed_flops
from mlm.config import PretrainConfig
from mlm.data.batches import IGNORED
from mlm.evaluation.pairs.likelihood import Sentence, pseudo_log_likelihoods
from mlm.model.attention import SegmentMask
from mlm.model.encoder import EncoderConfig
from mlm.model.heads import ModelConfig
from mlm.tracking import flops
from mlm.tracking.run_directory import write_json
from mlm.training.budget import StepSize, TrainingProgress
from mlm.training.optim import AdamW
from tests.mlm.benchmark.samples import in_this_process
from tests.mlm.samples import CPU, OURS, ROW_LENGTH, VOCABULARY, sentences, split_of, task_of
from tokenizer import vocabulary
from tokenizer.shards.format import open_shards
from tokenizer.vocabulary import VocabularyConfig

MEASURED = (
    "training/modernbert",
    "time-to-loss/concatenate-and-chunk",
    "time-to-loss/concatenate-and-chunk-tuned",
    "loss-curves/modernbert",
    "data/assemble-and-mask",
    "data/wait",
    "long-rows/sentences/512",
    "pairs",
    "resume",
)
CURVE_STEPS = 6
ASKED = tuple(
    dict.fromkeys(re.sub(r"(long-rows/.*)/\d+", r"\1", name) for name in MEASURED if not name.endswith("-tuned"))
)


def text(sentences: int) -> str:
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioulnrst", k=rng.randint(2, 8))) for _ in range(300)]
    return "\n".join(" ".join(rng.choices(words, k=rng.randint(3, 20))) for _ in range(sentences))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the command on a small text, both sides in this process; return its folder and the printed table."""
    folder, printed = tmp_path_factory.mktemp("benchmark"), io.StringIO()
    (folder / "corpus.txt").write_text(text(2000), encoding="utf-8")
    options = ["--quick", "--repeats", "1", "--seconds", "0.02", "--curve-steps", str(CURVE_STEPS), "--size", "2x64"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setattr(measure, "in_fresh_process", in_this_process)
        patch.setattr(speed, "STEP_TOKENS", 1)  # only the shorter ones of the long rows
        __main__.main([*options, "--text", "corpus.txt", "--vocabulary", "400", "--output", "report", *ASKED])
    return folder / "report", printed.getvalue()


def test_the_json_holds_what_was_measured_and_on_what(report: tuple[Path, str]) -> None:
    folder, _ = report
    found: dict[str, Any] = json.loads((folder / "benchmark.json").read_text())
    assert {"device", "threads", "command", "precision", "scale", "recipe", "text_fingerprint"} <= set(found)
    assert {"torch", "transformers", "accelerate"} <= set(found["versions"])
    cases = {case["name"]: case for case in found["cases"]}
    assert tuple(cases) == MEASURED
    for case in cases.values():
        for side in ("ours", "theirs", "ratio"):
            assert set(case[side]) == {"median", "lowest", "highest"}
            may_be_late = case["name"].startswith("time-to-loss/") and side != "theirs"
            assert all((value is None and may_be_late) or 0 < value < math.inf for value in case[side].values())
        assert case["counted"]
        trains = case["name"].startswith("training/")
        assert (case["peak_flops"] is not None) == (case["peak_share"] is not None) == trains
        counts_flops = case["unit"] == "nats" or case["name"].startswith("long-rows/")
        assert (case["curves"] is not None) == (case["unit"] == "nats")
        assert (case["flops_per_token"] is not None) == counts_flops
        if case["name"].startswith("long-rows/"):  # sentences are as long in rows of any length
            assert case["flops_per_token"]["ours"] == pytest.approx(case["flops_per_token"]["theirs"], rel=0.02)
        if trains:
            assert case["unit"] == "tokens/s"
            assert 0 < case["peak_flops"] < math.inf
            assert 0 < case["peak_share"] < math.inf


def test_both_sides_learn_from_as_many_tokens_and_are_judged_at_the_same_steps(report: tuple[Path, str]) -> None:
    cases = json.loads((report[0] / "benchmark.json").read_text())["cases"]
    (case,) = (case for case in cases if case["name"] == "loss-curves/modernbert")
    ((ours,), (theirs,)) = (case["curves"][side] for side in ("ours", "theirs"))
    assert len(ours) == len(theirs) == CURVE_STEPS + 1
    assert [tokens for tokens, _ in ours] == sorted({tokens for tokens, _ in ours})
    for (our_tokens, our_loss), (their_tokens, their_loss) in zip(ours, theirs, strict=True):
        assert our_tokens == pytest.approx(their_tokens, rel=0.1)
        assert our_loss == pytest.approx(their_loss, rel=0.1)
    assert ours[0][1] == pytest.approx(math.log(400), rel=0.1)  # both begin at a guess
    assert ours[-1][1] < ours[0][1]
    assert theirs[-1][1] < theirs[0][1]
    assert case["baselines"]["bigram"] < case["baselines"]["unigram"] < math.log(400)
    assert (case["ours"]["median"], case["theirs"]["median"]) == (ours[-1][1], theirs[-1][1])


def test_both_sides_of_the_loss_curves_have_the_trainers_optimizer() -> None:
    recipe = read(PretrainConfig, None, loss.CURVE_OPTIMIZER)
    theirs = transformers.TrainingArguments(max_steps=10, learning_rate=loss.CURVE_RATE)
    assert isinstance(recipe.optim, AdamW)
    assert recipe.optim.betas == (theirs.adam_beta1, theirs.adam_beta2)
    assert (recipe.optim.lr, recipe.optim.epsilon) == (theirs.learning_rate, theirs.adam_epsilon)
    assert (recipe.optim.weight_decay, recipe.train.clip_norm) == (theirs.weight_decay, theirs.max_grad_norm)
    assert theirs.optim.startswith("adamw")
    weight = torch.nn.Parameter(torch.zeros(1))
    rates = transformers.get_scheduler(theirs.lr_scheduler_type, torch.optim.SGD([weight], lr=1.0), 0, 10)
    for step in range(10):
        assert recipe.schedule.factor(step / 10) == pytest.approx(rates.get_last_lr()[0])
        rates.optimizer.step()
        rates.step()


def test_flops_are_counted_as_the_formula_has_them() -> None:
    config = ModelConfig(encoder=EncoderConfig(width=16, heads=2, feedforward_width=64, layers=2), transform=True)
    model = hf_models.bert(config.encoder, VOCABULARY, ROW_LENGTH)
    rows = torch.ones(3, ROW_LENGTH, dtype=torch.long)
    batch = {"input_ids": rows, "attention_mask": rows, "labels": rows}
    needed = flops.flops_per_token(config, VOCABULARY, context=ROW_LENGTH, predicted_share=1.0)
    assert loss.computed_flops(model, lambda: model(**batch)["loss"]) == needed * rows.numel()


def test_nothing_is_written_but_into_the_output_folder(report: tuple[Path, str]) -> None:
    folder, _ = report
    assert {path.name for path in folder.parent.iterdir()} == {"corpus.txt", folder.name}
    assert {path.name for path in folder.iterdir()} == {
        "benchmark.json",
        "benchmark.png",
        "loss-curves.png",
        "cache",
    }


def test_the_plot_is_a_png_and_the_table_names_the_cases(report: tuple[Path, str]) -> None:
    folder, printed = report
    for picture in ("benchmark.png", "loss-curves.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG\r\n")
    assert all(name in printed for name in MEASURED)


def test_the_trainers_tokens_are_those_that_the_attention_masks_mark(tmp_path: Path) -> None:
    # Both sides' speed is tokens without padding: theirs must be what its batches hold, no less and no more.
    lengths = np.random.default_rng(0).integers(1, 2 * ROW_LENGTH, 10).tolist()
    rows = hf_trainer.sentences(split_of([lengths]), ROW_LENGTH)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(vocabulary.serialize(vocabulary.learn(iter([text(50)]), VocabularyConfig(size=300))))
    collate, in_masks, slots, counted = hf_trainer.collator(path), [], [], []

    def watched(examples: list[Any]) -> dict[str, Any]:
        batch = collate(examples)
        in_masks.append(int(batch["attention_mask"].sum()))
        slots.append(batch["input_ids"].numel())
        return batch

    def after_step(tokens: int) -> bool:
        counted.append(tokens)
        return len(counted) == 3  # batches of 4, 4 and 2 rows: an epoch

    model = hf_models.bert(EncoderConfig(width=16, heads=2, feedforward_width=24, layers=1), 300, ROW_LENGTH)
    dataset = datasets.Dataset.from_list(hf_trainer.examples(rows))
    hf_trainer.trainer(model, watched, dataset, after_step, per_device_train_batch_size=4).train()
    assert counted == list(accumulate(in_masks))[:3]
    assert counted[-1] == sum(min(length, ROW_LENGTH) for length in lengths) < sum(slots[:3])


def test_both_sides_tokenize_a_file_of_text(tmp_path: Path) -> None:
    lines, learned = text(200), vocabulary.learn(iter([text(50)]), VocabularyConfig(size=300))
    (tmp_path / "text.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "tokenizer.json").write_bytes(vocabulary.serialize(learned))
    data.build_ours(tmp_path / "text.txt", tmp_path / "tokenizer.json", tmp_path)
    _, workers_bytes = hf_trainer.map_text(tmp_path / "text.txt", tmp_path / "tokenizer.json", tmp_path / "theirs")
    assert workers_bytes == 0  # it runs in one process
    manifest = open_shards(tmp_path / "shards").manifest
    assert manifest.train.documents + manifest.heldout.documents == len(set(lines.splitlines()))


def test_both_ways_of_making_rows_keep_the_text() -> None:
    split = split_of([[5, 30], [7]])
    alone, chunks = hf_trainer.sentences(split, ROW_LENGTH), hf_trainer.chunks(split, 20)
    assert [row.tolist() for row in alone] == [split.tokens[a:b].tolist() for a, b in ((0, 5), (5, 29), (35, 42))]
    assert [row.tolist() for row in chunks] == [split.tokens[0:20].tolist(), split.tokens[20:40].tolist()]


@pytest.mark.parametrize(("seconds", "more_steps"), [(10.0, 4), (0.0, 0)])
def test_the_meter_leaves_out_the_warm_up_and_counts_enough_steps(seconds: float, more_steps: int) -> None:
    now, tokens = 0.0, 0
    meter = Meter(seconds, synchronize=lambda: None, clock=lambda: now)
    for _ in range(WARMUP_STEPS):
        now, tokens = now + 1000.0, tokens + 7
        assert not meter.after_step(tokens)
    for _ in range(COUNTED_STEPS + more_steps - 1):
        now, tokens = now + 0.5, tokens + 15
        assert not meter.after_step(tokens)
    now, tokens = now + 0.5, tokens + 15
    assert meter.after_step(tokens)
    assert meter.rate == 30.0


def test_the_meter_counts_steps_that_are_logged_together() -> None:
    now = 1.0
    meter = Meter(0.0, synchronize=lambda: None, clock=lambda: now, batch_seconds=12.0)
    assert not meter.after_step(100, WARMUP_STEPS + 1)  # counted from here on
    now = 3.0
    assert not meter.after_step(300, COUNTED_STEPS - 2)
    now = 6.0
    assert meter.after_step(700, 1)
    assert meter.rate == 600 / 5
    assert meter.waited_share == pytest.approx(12 / 24 * 15 / 5)


@pytest.mark.parametrize(("seconds", "calls"), [(5.0, 3), (0.0, 1)])
def test_calls_are_counted_whole_and_without_the_first(seconds: float, calls: int) -> None:
    now = 0.0

    def call() -> None:
        nonlocal now
        now += 2.0 if now else 100.0

    assert times_a_second(call, seconds, clock=lambda: now) == 0.5
    assert now == 100.0 + 2.0 * calls


def test_sides_take_turns_and_the_ratio_is_of_each_turn() -> None:
    order: list[str] = []

    def measure(side: str, result: float) -> float:
        order.append(side)
        return result * len(order)

    sides = alternate(lambda: measure("ours", 2.0), lambda: measure("theirs", 1.0), 3)
    assert order == ["ours", "theirs"] * 3
    case = Case.of("name", "unit", "counted", *sides)
    assert (case.ours, case.theirs) == (Spread(6.0, 2.0, 10.0), Spread(4.0, 2.0, 6.0))
    assert case.ratio == Spread(6 / 4, 2 / 2, 10 / 6)


def test_theirs_runs_in_a_process_of_its_own_with_the_default_spin_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert as_users_run_it(os.getenv, "GOMP_SPINCOUNT") == "300000"
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert as_users_run_it(os.getpid) != os.getpid()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_peak_memory_is_the_fresh_processs_own() -> None:
    size = 100 * 2**20
    ballast = b"x" * (4 * size)  # which a child of ours would show in its ru_maxrss
    (_, little), (length, much) = in_fresh_process(len, b""), in_fresh_process(len, ballast[:size])
    assert length == size
    assert len(ballast) > much >= little + size


def test_unknown_cases_and_missing_packages_are_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="did you mean start-up"):
        __main__.main(["startup"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"transformers, accelerate.*pip install .*\[bench\]'"):
        __main__.main(["start-up"])


def test_training_is_measured_at_every_size_and_all_else_at_the_first(tmp_path: Path) -> None:
    sizes = [
        "--size",
        "2x64",
        "--size",
        "3x128",
        "--vocabulary",
        "500",
        "--row-length",
        "32",
        "--row-length",
        "64",
        "--output",
        str(tmp_path),
    ]
    benches = __main__.prepare(__main__.parse([*sizes, "--output", str(tmp_path)]))
    assert [bench.label for bench in benches] == [
        "/2x64/500/32",
        "/2x64/500/64",
        "/3x128/500/32",
        "/3x128/500/64",
    ]
    recipe = benches[-1].recipe
    encoder = recipe.model.encoder
    assert (encoder.layers, encoder.width, encoder.heads, encoder.feedforward_width) == (3, 128, 2, 512)
    assert (recipe.vocabulary.size, recipe.data.row_length) == (500, 64)
    assert [bench.recipe.train.batch_rows * bench.recipe.data.row_length for bench in benches] == [2048] * 4
    (alone,) = __main__.prepare(__main__.parse(["--output", str(tmp_path)]))
    assert alone.label == ""


@pytest.mark.parametrize("size", ["4", "4x", "x256", "4x100", "0x64", "4x256x2"])
def test_a_wrong_size_is_said_with_a_right_one(size: str) -> None:
    with pytest.raises(UserError, match=f"{size!r} is not layers x width, a multiple of 64, such as 6x512"):
        __main__.parse(["--size", size])


def test_their_heldout_loss_weighs_every_target_alike() -> None:
    heldout = task_of(sentences(40)).heldout
    torch.manual_seed(0)
    encoder = EncoderConfig(width=16, heads=2, feedforward_width=24, layers=1)
    model = hf_models.bert(encoder, VOCABULARY, ROW_LENGTH)
    found = loss.loss_of(model, heldout)
    nats = [0.0, 0.0]
    with torch.no_grad():
        for batch in heldout:
            for form, rows in enumerate((hf_models.labelled(batch), hf_models.unpacked(batch))):
                scores = model(rows["input_ids"], rows["attention_mask"]).logits.log_softmax(dim=-1)
                for scores_LV, labels_L in zip(scores, rows["labels"].tolist(), strict=True):
                    for scores_V, label in zip(scores_LV, labels_L, strict=True):
                        nats[form] -= scores_V[label].item() if label != IGNORED else 0.0
    targets = [batch.targets for batch in heldout]
    assert len(set(targets)) > 1
    assert abs(nats[0] - nats[1]) > 1e-3
    assert found == pytest.approx(min(nats) / sum(targets), rel=1e-5)


def test_the_time_to_a_loss_is_that_of_the_first_evaluation_at_the_goal() -> None:
    curve, model = loss.LossCurve(goal=3.0), torch.nn.Identity()
    for progress, nats in ((TrainingProgress(), 2.0), (TrainingProgress(step=1, tokens=5, seconds=10.0), 3.5)):
        curve.evaluated(progress, {"loss": nats}, model)
        assert curve.seconds == math.inf
    for seconds, nats in ((20.0, 3.0), (30.0, 2.0)):
        curve.evaluated(TrainingProgress(step=2, tokens=10, seconds=seconds), {"loss": nats}, model)
        assert curve.seconds == 20.0
    assert curve.points == [(0, 2.0), (5, 3.5), (10, 3.0), (10, 2.0)]


def test_a_loss_that_was_not_reached_has_no_time(tmp_path: Path) -> None:
    late = Case.of("late", "s", "seconds", [math.inf, 2.0, math.inf], [1.0, 1.0, 1.0])
    even = Case.of("even", "s", "seconds", [1.0], [1.0])
    write_json(tmp_path / "late.json", {"cases": [asdict(late)]})
    (found,) = json.loads((tmp_path / "late.json").read_text())["cases"]
    assert found["ours"] == found["ratio"] == {"median": None, "lowest": 2.0, "highest": None}
    assert "inf" in measure.table([late])
    measure.draw([late, even], tmp_path)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "corpus.txt").write_text(text(2000), encoding="utf-8")
    options = ["--quick", "--text", str(tmp_path / "corpus.txt"), "--vocabulary", "400", "--output", str(tmp_path)]
    (made,) = __main__.prepare(__main__.parse(options))
    return made


def test_ours_trains_for_at_most_as_long_as_theirs(bench: Bench) -> None:
    recipe = loss.our_recipe(bench, 3.0, seed=7)
    assert recipe.train.seed == 7
    length = recipe.train.budget.training_length(StepSize(1.0, 1.0))
    assert length.steps is None
    assert length.seconds == pytest.approx(3.0)


def test_ours_stops_at_the_goal_and_has_no_time_where_the_budget_ends_first(bench: Bench) -> None:
    forever, one_step = loss.our_recipe(bench, 1e9, seed=0), loss.our_recipe(bench, 1e-9, seed=0)
    assert 0 < loss.learn(forever, bench.world, 2, goal=1e3).seconds < math.inf
    assert loss.learn(one_step, bench.world, 2, goal=0.0).seconds == math.inf


def test_the_needed_flops_follow_the_mean_masking_rate(bench: Bench) -> None:
    def needed(*overrides: str) -> float:
        return needed_flops(replace(bench, sizes=(*bench.sizes, *overrides)))

    assert needed("masking.rate=0.1", "masking.final_rate=0.5") == pytest.approx(needed("masking.rate=0.3"))
    assert needed("masking.rate=0.1") < needed("masking.rate=0.3")


def test_a_bench_is_sent_without_its_corpus(bench: Bench) -> None:
    assert len(bench.corpus.train)
    sent = pickle.loads(pickle.dumps(bench))
    assert sent == bench
    assert "corpus" in vars(bench)
    assert "corpus" not in vars(sent)


def test_pairs_cost_both_sides_the_same_scores() -> None:
    """The same model, asked by our copies in shared rows and by a batch for each sentence, says the same."""
    torch.manual_seed(0)
    shape = EncoderConfig(width=32, heads=2, feedforward_width=64, layers=2)
    model: nn.Module = hf_models.bert(shape, VOCABULARY, ROW_LENGTH)
    model.eval()
    texts = [Sentence((7, 8, 9, 10), (1, 0, 0, 1)), Sentence((11, 12), (1, 1))]
    special = OURS[True]

    class Asked(nn.Module):
        def forward(self, ids_BL: Tensor, segment_mask: SegmentMask, predicted_BM: Tensor) -> Tensor:
            found = []
            for ids_L, segments_L, predicted_M in zip(ids_BL, segment_mask.segments_BL, predicted_BM, strict=True):
                for place in predicted_M:
                    mine_L = (segments_L == segments_L[place]).nonzero()[:, 0]
                    logits = model(input_ids=ids_L[mine_L][None]).logits[0]
                    found.append(logits[place - mine_L[0]])
            return torch.stack(found)

    ours = pseudo_log_likelihoods(Asked(), texts, special, CPU)
    assert torch.allclose(judge_one_by_one(model, texts, special).double(), ours, atol=1e-5)
    assert ours[0, 0] != ours[0, 1]
    assert ours[1, 0] == ours[1, 1]
