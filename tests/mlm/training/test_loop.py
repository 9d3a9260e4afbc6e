import ast
import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlm.checkpoint import checkpoint
from mlm.config import PretrainConfig
from mlm.data.batches import Batch
from mlm.data.masking import Masking
from mlm.distributed.world import World
from mlm.model.encoder import EncoderConfig
from mlm.model.heads import ModelConfig
from mlm.objectives.masked import MaskedLMTask, heldout_batches
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Intervals, LoopSettings, Observer, StepMetrics, train
from mlm.training.optim import AdamW, Muon, Optimizer, OptimizerConfig, ScheduleFreeAdamW
from mlm.training.schedule import Constant, Trapezoid
from tests.mlm.samples import CPU, TINY, model_of, packed, same, sentences, split_of, task_of

ROOT = Path(__file__).parents[3]
EVERY = [AdamW(lr=0.01), ScheduleFreeAdamW(lr=0.01), Muon(lr=0.01)]
every_optimizer = pytest.mark.parametrize("config", EVERY, ids=lambda config: config.kind)
EACH_STEP = Intervals(log_steps=1, evaluate_steps=100, checkpoint_steps=1)


@dataclass
class Notebook(Observer):
    """Takes down all that the loop reports."""

    logged: list[tuple[TrainingProgress, StepMetrics]] = field(default_factory=list)
    evaluations: list[tuple[TrainingProgress, Mapping[str, float]]] = field(default_factory=list)
    checkpoints: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    saving: Callable[[TrainingProgress, nn.Module, Optimizer], object] = lambda progress, model, optimizer: None

    def log(self, progress: TrainingProgress, metrics: StepMetrics) -> None:
        self.logged.append((progress, metrics))

    def evaluated(self, progress: TrainingProgress, metrics: Mapping[str, float], model: nn.Module) -> None:
        assert not model.training
        self.evaluations.append((progress, metrics))

    def checkpoint(self, progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        self.checkpoints[progress.step] = copy.deepcopy(model.state_dict())
        self.saving(progress, model, optimizer)

    @property
    def losses(self) -> list[float]:
        return [metrics.sums["loss"].item() for _, metrics in self.logged]


def run(
    task: Any,
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    *,
    intervals: Intervals = EACH_STEP,
    notebook: Notebook | None = None,
    start: TrainingProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
    schedule: Constant | Trapezoid | None = None,
    clip_norm: float = 1.0,
    world: World = CPU,
) -> tuple[TrainingProgress, Notebook]:
    notebook = notebook or Notebook()
    end = train(
        model,
        task,
        LoopSettings(
            optimizer,
            schedule or Trapezoid(warmup=0.2),
            TrainingLength(steps=steps),
            intervals=intervals,
            clip_norm=clip_norm,
            seed=3,
        ),
        world,
        [notebook],
        start=start or TrainingProgress(),
        stop=stop,
    )
    return end, notebook


@pytest.mark.parametrize("micro_batch_rows", [1, 2, 5])
def test_accumulated_micro_batches_are_one_batch(micro_batch_rows: int) -> None:
    """Whose numbers of targets differ: the mean of their means would move the weights by 0.04 to 0.07."""
    rows = packed(split_of([[length] for length in (24, 14, 18, 13, 23, 16, 15, 2, 20)]), alone=True)
    masking = Masking(rate=0.3)

    def trained(micro_batch_rows: int) -> dict[str, Tensor]:
        task, model = task_of(rows, masking=masking, micro_batch_rows=micro_batch_rows), model_of().double()
        assert micro_batch_rows == 6 or len({batch.targets for batch in task.micro_batches(0, 0.0)}) > 1
        run(task, model, AdamW(lr=0.01).build(model), 5)
        return dict(model.named_parameters())

    expected = trained(6)
    for name, weight in trained(micro_batch_rows).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "least_error", "most_error"), [(torch.bfloat16, 1e-3, 0.1), (torch.float32, 0.0, 1e-5)]
)
def test_muon_rounds_as_the_worlds_precision_does(dtype: torch.dtype, least_error: float, most_error: float) -> None:
    world = World(CPU.device, dtype)
    task, model = replace(task_of(sentences(40, seed=1)), world=world), model_of()
    hidden = [p for name, p in model.named_parameters() if name.endswith("feedforward.sublayer.output.weight")]
    assert len(hidden) == 2
    (batch,) = task.micro_batches(0, 0.0)
    gradients = torch.autograd.grad(task.losses(model, batch)["loss"], hidden)
    before = [weight.detach().clone() for weight in hidden]
    run(task, model, Muon(lr=1.0, weight_decay=0.0).build(model), 1, schedule=Constant(warmup=0.0), world=world)
    for weight, gradient, start in zip(hidden, gradients, before, strict=True):
        left, singular, right = torch.linalg.svd(gradient.double(), full_matrices=False)
        singular = singular / singular.norm()
        for _ in range(5):  # the polynomial acts on the singular values alone (Jordan et al. 2024)
            singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
        exact = -0.2 * math.sqrt(max(weight.shape)) * (left * singular) @ right
        error = ((weight.detach() - start - exact).norm() / exact.norm()).item()
        assert least_error <= error < most_error


@pytest.mark.parametrize("clip_norm", [0.1, 1e9])
def test_a_step_descends_the_mean_loss_over_all_its_targets(clip_norm: float) -> None:
    """Plain gradient descent, against the gradient written out."""
    task, model = task_of(sentences(40), micro_batch_rows=4), model_of().double()
    parameters, batches = list(model.parameters()), task.micro_batches(0, 0.5)
    assert len(batches) == 2
    loss = sum((task.losses(model, batch)["loss"] for batch in batches), torch.tensor(0.0))
    gradients = torch.autograd.grad(loss / sum(batch.targets for batch in batches), parameters)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert 0.1 < norm < 1e9
    scale = min(clip_norm / norm, 1.0)
    expected = [weight.detach() - 0.5 * scale * g for weight, g in zip(parameters, gradients, strict=True)]

    descent = Optimizer([torch.optim.SGD(parameters, lr=0.5)])
    _, notebook = run(task, model, descent, 1, schedule=Constant(warmup=0), clip_norm=clip_norm)
    for parameter, descended in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), descended, rtol=0, atol=1e-6)
    assert notebook.logged[0][1].gradient_norm == pytest.approx(norm, rel=1e-6)
    assert notebook.losses == pytest.approx([loss.item()], rel=1e-6)


@dataclass
class Poisoned:
    """A task one of whose steps has a loss or a gradient that is not a number."""

    task: MaskedLMTask
    bad_step: int
    what: str
    step: int = -1

    def micro_batches(self, step: int, progress: float) -> Sequence[Batch]:
        self.step = step
        return self.task.micro_batches(step, progress)

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        losses = dict(self.task.losses(model, batch))
        if self.step == self.bad_step:
            zero = sum((parameter.sum() * 0 for parameter in model.parameters()), torch.tensor(0.0))
            # At zero a square root is finite and its derivative infinite.
            losses["loss"] = losses["loss"] * torch.nan if self.what == "loss" else losses["loss"] + zero.sqrt()
        return losses

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        return self.task.evaluate(model)


@every_optimizer
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_nan_batch_leaves_the_weights_unchanged(config: OptimizerConfig, what: str, bad_step: int) -> None:
    model = model_of()
    initial = copy.deepcopy(model.state_dict())
    task = Poisoned(task_of(sentences(40), micro_batch_rows=4), bad_step, what)
    end, notebook = run(task, model, config.build(model), 4)
    states = [initial, *notebook.checkpoints.values()]
    changed = [not same(before, after) for before, after in itertools.pairwise(states)]
    assert changed == [step != bad_step for step in range(4)]
    assert [metrics.skipped for _, metrics in notebook.logged] == [[0] * (step == bad_step) for step in range(4)]
    assert end.step == 4
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@dataclass
class Emptied:
    """A task some of whose steps, or else some of whose micro-batches, have no targets."""

    task: MaskedLMTask
    empty_steps: Sequence[int] = ()
    empty_micro_batches: int = 0
    """Number of them before, between and after those of the task."""

    def micro_batches(self, step: int, progress: float) -> Sequence[Batch]:
        batches = self.task.micro_batches(step, progress)
        empty = [batch.without_targets() for batch in batches]
        filled = empty if step in self.empty_steps else batches
        return [*empty[:1] * self.empty_micro_batches, *filled, *empty[:1] * self.empty_micro_batches]

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return self.task.losses(model, batch)

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        return self.task.evaluate(model)


@every_optimizer
@pytest.mark.parametrize("empty_step", [0, 2])
def test_a_step_without_targets_has_no_loss_and_changes_nothing(config: OptimizerConfig, empty_step: int) -> None:
    model = model_of()
    optimizer = config.build(model)
    states = [copy.deepcopy((model.state_dict(), optimizer.state_dict()))]

    def save(progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        states.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))

    task = Emptied(task_of(sentences(40), micro_batch_rows=4), [empty_step])
    end, notebook = run(task, model, optimizer, 4, notebook=Notebook(saving=save))
    is_empty = [step == empty_step for step in range(4)]
    assert [same(before[0], after[0]) for before, after in itertools.pairwise(states)] == is_empty
    assert [metrics.mean("loss") is None for _, metrics in notebook.logged] == is_empty
    assert [metrics.mean("correct") is None for _, metrics in notebook.logged] == is_empty
    assert [metrics.skipped for _, metrics in notebook.logged] == [[]] * 4  # no divergence
    assert end.step == 4
    # The moments are those before it, too; only the rate of the schedule moves on.
    for before, after in zip(states[empty_step][1], states[empty_step + 1][1], strict=True):
        moments = [value for state in after["state"].values() for value in state.values()]
        assert same(before["state"], after["state"]) if empty_step else not any(value.any() for value in moments)


def test_steps_without_targets_do_not_enter_the_means_of_a_record() -> None:
    intervals = Intervals(log_steps=4, evaluate_steps=100, checkpoint_steps=100)
    with_some, alone = (
        run(Emptied(task_of(sentences(40)), steps), model, AdamW().build(model), 4, intervals=intervals)[1]
        for steps, model in (([1, 3], model_of()), ([], model_of()))
    )
    each = run(Emptied(task_of(sentences(40)), [1, 3]), (model := model_of()), AdamW().build(model), 4)[1].logged
    losses = [(metrics.sums["loss"].item(), metrics.targets) for _, metrics in each]
    assert [targets > 0 for _, targets in losses] == [True, False, True, False]
    mean = with_some.logged[0][1].mean("loss")
    assert mean == pytest.approx(sum(loss for loss, _ in losses) / sum(targets for _, targets in losses))
    assert mean != alone.logged[0][1].mean("loss")


@every_optimizer
def test_micro_batches_without_targets_change_nothing(config: OptimizerConfig) -> None:
    def trained(empty_micro_batches: int) -> tuple[dict[str, Tensor], list[float]]:
        model, task = model_of(), task_of(sentences(40), micro_batch_rows=3)
        emptied = Emptied(task, empty_micro_batches=empty_micro_batches)
        return model.state_dict(), run(emptied, model, config.build(model), 3)[1].losses

    assert same(trained(0), trained(2))


@every_optimizer
@pytest.mark.parametrize("resumed_at", [2, 4, 7])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    config: OptimizerConfig, resumed_at: int, tmp_path: Path
) -> None:
    """Mid-epoch and across epochs, through a real checkpoint, with dropout and masks that change with progress."""
    rows, steps = sentences(36), 8
    task = task_of(rows, masking=Masking(rate=0.15, final_rate=0.4), micro_batch_rows=4)
    assert 3 * 6 < len(rows) < 4 * 6, "the first epoch ends within step 3"
    dropping = TINY.model_copy(update={"encoder": TINY.encoder.model_copy(update={"dropout": 0.1})})
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")

    def save(progress: TrainingProgress, model: nn.Module, optimizer: Optimizer) -> None:
        if progress.step == resumed_at:
            checkpoint.save(
                tmp_path / "checkpoint", checkpoint.snapshot(model, optimizer, progress), PretrainConfig(), tokenizer
            )

    model = model_of(dropping)
    optimizer = config.build(model)
    _, whole = run(task, model, optimizer, steps, notebook=Notebook(saving=save))

    torch.manual_seed(12345)
    fresh = model_of(dropping, seed=99)
    resumed_optimizer = config.build(fresh)
    begin = checkpoint.load_training(tmp_path / "checkpoint", fresh, resumed_optimizer)
    assert begin.step == resumed_at
    assert same(fresh.state_dict(), whole.checkpoints[resumed_at])
    end, rest = run(task, fresh, resumed_optimizer, steps, start=begin)

    assert same(fresh.state_dict(), model.state_dict())
    assert same(resumed_optimizer.state_dict(), optimizer.state_dict())
    assert rest.losses == whole.losses[resumed_at:]
    assert end.tokens == whole.logged[-1][0].tokens
    assert rest.evaluations[-1][1] == whole.evaluations[-1][1]
    assert begin.seconds == whole.logged[resumed_at - 1][0].seconds > 0
    assert end.seconds > begin.seconds


def test_a_finished_run_resumes_to_a_no_op() -> None:
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    end, notebook = run(
        task_of(sentences(40)), model, AdamW().build(model), 5, start=TrainingProgress(step=5, tokens=7)
    )
    assert end == TrainingProgress(step=5, tokens=7)
    assert same(model.state_dict(), before)
    assert notebook == Notebook(saving=notebook.saving)


def test_dropout_is_a_function_of_seed_step_and_micro_batch() -> None:
    dropping = TINY.model_copy(update={"encoder": TINY.encoder.model_copy(update={"dropout": 0.5})})

    def losses(global_seed: int, dropout_seed: int) -> list[float]:
        model = model_of(dropping)
        torch.manual_seed(global_seed)
        notebook = Notebook()
        train(
            model,
            task_of(sentences(40), micro_batch_rows=3),
            LoopSettings(
                AdamW().build(model),
                Constant(),
                TrainingLength(steps=3),
                intervals=EACH_STEP,
                clip_norm=1.0,
                seed=dropout_seed,
            ),
            CPU,
            [notebook],
            start=TrainingProgress(),
        )
        return notebook.losses

    assert losses(0, 5) == losses(1, 5)
    assert losses(0, 5) != losses(0, 6)


@dataclass
class Repeating:
    """A task whose micro-batches are all the same one; it takes down the loss of each."""

    task: MaskedLMTask
    losses_seen: list[float] = field(default_factory=list)

    def micro_batches(self, step: int, progress: float) -> Sequence[Batch]:
        return list(self.task.micro_batches(0, 0.0)) * 2

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        losses = self.task.losses(model, batch)
        self.losses_seen.append(losses["loss"].item())
        return losses

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        return self.task.evaluate(model)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_new_in_each_step_and_micro_batch(dropout: float) -> None:
    model = model_of(TINY.model_copy(update={"encoder": TINY.encoder.model_copy(update={"dropout": dropout})}))
    task = Repeating(task_of(sentences(40)))
    run(task, model, Optimizer([torch.optim.SGD(model.parameters(), lr=1e-30)]), 3)
    assert len(task.losses_seen) == 6
    assert len(set(task.losses_seen)) == (6 if dropout else 1)


def test_eight_sentences_are_overfitted() -> None:
    rows = packed(split_of([[8]] * 8, seed=1), row_length=8, alone=True)
    heldout = heldout_batches(rows, Masking(), CPU, most_rows=8, micro_batch_rows=8)
    task = MaskedLMTask(rows, heldout, Masking(), CPU, seed=0, batch_rows=8, micro_batch_rows=8)
    model = model_of(ModelConfig(encoder=EncoderConfig(width=32, heads=2, feedforward_width=64, layers=2)))
    seldom = Intervals(log_steps=1000, evaluate_steps=1000, checkpoint_steps=1000)
    _, notebook = run(task, model, AdamW(lr=5e-3, weight_decay=0).build(model), 600, intervals=seldom)
    before, after = (metrics["loss"] for _, metrics in notebook.evaluations)
    assert before > 3.5  # ln 40 = 3.7
    assert after < 0.05
    assert notebook.evaluations[-1][1]["accuracy"] == 1


def test_the_loop_reports_at_its_intervals_and_at_both_ends() -> None:
    model = model_of()
    intervals = Intervals(log_steps=2, evaluate_steps=3, checkpoint_steps=4)
    _, notebook = run(task_of(sentences(40)), model, AdamW().build(model), 7, intervals=intervals)
    assert [progress.step for progress, _ in notebook.logged] == [2, 4, 6, 7]
    assert [progress.step for progress, _ in notebook.evaluations] == [0, 3, 6, 7]
    assert list(notebook.checkpoints) == [4, 7]
    assert [metrics.steps for _, metrics in notebook.logged] == [2, 2, 2, 1]
    assert model.training


def test_events_of_the_last_step_are_reported_once() -> None:
    model = model_of()
    intervals = Intervals(log_steps=2, evaluate_steps=2, checkpoint_steps=2)
    _, notebook = run(task_of(sentences(40)), model, AdamW().build(model), 4, intervals=intervals)
    assert [progress.step for progress, _ in notebook.logged] == [2, 4]
    assert [progress.step for progress, _ in notebook.evaluations] == [0, 2, 4]


def test_metrics_hold_the_batches_tokens_and_the_schedules_rate() -> None:
    model, task = model_of(), task_of(sentences(40), micro_batch_rows=4)
    end, notebook = run(task, model, AdamW().build(model), 4, schedule=Trapezoid(warmup=0.5, decay=0.5))
    batches = [task.micro_batches(step, 0.0) for step in range(4)]
    assert end.tokens == sum(batch.tokens for step in batches for batch in step)
    assert [metrics.tokens for _, metrics in notebook.logged] == [sum(b.tokens for b in step) for step in batches]
    assert [metrics.targets for _, metrics in notebook.logged] == [sum(b.targets for b in step) for step in batches]
    rates = [metrics.learning_rates for _, metrics in notebook.logged]
    peak = AdamW().lr
    assert rates == [{"lr": pytest.approx(peak * factor)} for factor in (0.25, 0.75, 0.75, 0.25)]


@pytest.mark.parametrize("config", [ScheduleFreeAdamW(lr=0.05)], ids=lambda config: config.kind)
def test_the_averaged_weights_are_evaluated_and_the_trained_ones_kept(config: OptimizerConfig) -> None:
    model, task = model_of(), task_of(sentences(40))
    optimizer = config.build(model)
    _, notebook = run(task, model, optimizer, 5, intervals=Intervals(log_steps=9, evaluate_steps=9, checkpoint_steps=9))
    model.eval()
    trained = task.evaluate(model)
    with optimizer.evaluation_weights():
        averaged = task.evaluate(model)
    assert notebook.evaluations[-1][1] == averaged != trained


def test_a_stop_ends_after_the_step_and_saves_it() -> None:
    model, notebook = model_of(), Notebook()
    end, _ = run(
        task_of(sentences(40)),
        model,
        AdamW().build(model),
        9,
        intervals=Intervals(log_steps=2, evaluate_steps=5, checkpoint_steps=5),
        notebook=notebook,
        stop=lambda: len(notebook.logged) == 1,
    )
    assert end.step == 3
    assert [progress.step for progress, _ in notebook.logged] == [2, 3]
    assert list(notebook.checkpoints) == [3]


@pytest.mark.parametrize("during", [1, 2], ids=["the first evaluation", "a later evaluation"])
def test_a_stop_during_an_evaluation_saves_the_step_it_ends_with(during: int) -> None:
    model, notebook = model_of(), Notebook()
    end, _ = run(
        task_of(sentences(40)),
        model,
        AdamW().build(model),
        9,
        intervals=Intervals(log_steps=9, evaluate_steps=2, checkpoint_steps=9),
        notebook=notebook,
        stop=lambda: len(notebook.evaluations) >= during,
    )
    assert 0 < end.step < 9
    assert list(notebook.checkpoints) == [end.step]
    assert notebook.logged[-1][0] == end


def test_a_budget_of_time_ends_when_it_is_used_up() -> None:
    model, notebook = model_of(), Notebook()
    end = train(
        model,
        task_of(sentences(40)),
        LoopSettings(
            AdamW().build(model),
            Constant(),
            TrainingLength(seconds=0.05),
            intervals=EACH_STEP,
            clip_norm=1.0,
            seed=0,
        ),
        CPU,
        [notebook],
        start=TrainingProgress(),
    )
    assert end.seconds >= 0.05
    assert all(progress.seconds < 0.05 for progress, _ in notebook.logged[:-1])
    assert notebook.evaluations[-1][0] == end


def test_steps_are_merged_into_one_record() -> None:
    def step(loss: float, *, finite: bool = True) -> StepMetrics:
        return StepMetrics(
            {"loss": torch.tensor(loss), "correct": torch.tensor(2)},
            targets=3,
            tokens=20,
            seconds=0.5,
            batch_seconds=0.25,
            learning_rates={"lr": loss / 8},
            gradient_norm=torch.tensor(loss),
            finite_S=torch.tensor([finite]),
        )

    merged = StepMetrics.merge([step(1.0), step(2.0, finite=False), step(4.0, finite=False)], CPU)
    assert (merged.sums["loss"].item(), merged.sums["correct"].item()) == (7.0, 6.0)
    assert (merged.targets, merged.tokens, merged.seconds, merged.batch_seconds) == (9, 60, 1.5, 0.75)
    assert (merged.steps, merged.skipped, merged.mean("loss")) == (3, [1, 2], 7.0 / 9)
    assert (merged.learning_rates, merged.gradient_norm.item()) == ({"lr": 0.5}, 4.0)
    assert replace(merged, targets=0).mean("loss") is None


def test_there_is_one_backward_pass_in_the_tree() -> None:
    found = [
        path.relative_to(ROOT).as_posix()
        for package in ("configs", "tokenizer", "mlm", "finetune")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "backward"
    ]
    assert found == ["mlm/training/loop.py"]
