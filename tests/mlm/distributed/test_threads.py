"""Threads that train together train what one would."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from configs import read
from mlm.build import PretrainComponents, build
from mlm.config import PretrainConfig
from mlm.data.masking import Masking
from mlm.distributed.threads import POSITIONS_WORTH_A_THREAD, replicate_on_threads, threads_for
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives.masked import MaskedLMTask, heldout_batches
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Intervals, LoopSettings, train
from mlm.training.optim import AdamW, Muon, Optimizer, OptimizerConfig, ScheduleFreeAdamW
from mlm.training.schedule import Trapezoid
from tests.distributed.worker import Notebook
from tests.mlm.samples import CPU, TINY, model_of, sentences

EVERY: list[OptimizerConfig] = [AdamW(lr=0.01), ScheduleFreeAdamW(lr=0.01), Muon(lr=0.01)]


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    """Let torch divide its work among four threads, however many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def trained(
    threads: int,
    config: OptimizerConfig,
    *,
    dtype: torch.dtype = torch.float64,
    rows: int = 1,
    dropout: float = 0.0,
    start: tuple[MaskedLanguageModel, Optimizer, int] | None = None,
    steps: int = 12,
) -> tuple[list[float], MaskedLanguageModel, Optimizer]:
    """Train from the start, or go on; return the losses and what was trained."""
    world, masking = replace(CPU, dtype=dtype), Masking()
    encoder = TINY.encoder.model_copy(update={"dropout": dropout})
    model = model_of(TINY.model_copy(update={"encoder": encoder})).to(dtype)
    optimizer, first = config.build(model), 0
    if start is not None:
        model.load_state_dict(start[0].state_dict())
        optimizer.load_state_dict(copy.deepcopy(start[1].state_dict()))
        first = start[2]
    heldout = heldout_batches(sentences(12, seed=99), masking, world, most_rows=7, micro_batch_rows=2)
    task = MaskedLMTask(sentences(60), heldout, masking, world, 0, 6, rows)
    intervals = Intervals(log_steps=1, evaluate_steps=4, checkpoint_steps=steps)
    plan, notebook = TrainingLength(steps=12), Notebook()
    settings = LoopSettings(optimizer, Trapezoid(), plan, intervals, clip_norm=1.0, seed=0, threads=threads)
    train(
        model,
        task,
        settings,
        world,
        [notebook],
        start=TrainingProgress(first),
        stop=lambda: first + notebook.steps + 1 >= steps,
    )
    return notebook.losses, model, optimizer


@pytest.mark.parametrize("config", EVERY, ids=lambda config: config.kind)
@pytest.mark.parametrize(("threads", "rows"), [(2, 1), (3, 2), (4, 1), (4, 6)])
def test_any_number_of_threads_trains_the_same_model(threads: int, rows: int, config: OptimizerConfig) -> None:
    """Also where the micro-batches, six of one row, three of two, or one of six, do not divide by the threads."""
    expected, alone, _ = trained(1, config, rows=6)
    losses, model, _ = trained(threads, config, rows=rows)
    assert len(set(expected)) > 12
    assert losses == pytest.approx(expected, rel=1e-10)
    for one, other in zip(alone.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("threads", "rows"), [(2, 1), (3, 1), (2, 2), (3, 2)])
def test_any_number_of_threads_drops_the_same_elements(threads: int, rows: int) -> None:
    expected, alone, _ = trained(1, EVERY[0], rows=rows, dropout=0.3)
    losses, model, _ = trained(threads, EVERY[0], rows=rows, dropout=0.3)
    assert losses == pytest.approx(expected, rel=1e-10)
    assert trained(1, EVERY[0], rows=6, dropout=0.3)[0] != pytest.approx(expected, rel=1e-3)  # a step cut otherwise
    for one, other in zip(alone.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("config", EVERY, ids=lambda config: config.kind)
def test_threads_give_the_same_bits_again_and_after_a_resume(config: OptimizerConfig, dropout: float) -> None:
    whole, model, _ = trained(3, config, dtype=torch.float32, dropout=dropout)
    first, stopped, optimizer = trained(3, config, dtype=torch.float32, dropout=dropout, steps=8)
    start = stopped, optimizer, 8
    rest, resumed, _ = trained(3, config, dtype=torch.float32, dropout=dropout, start=start)
    assert first + rest == whole
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_replicas_share_weights_and_buffers_and_nothing_else() -> None:
    model = model_of()
    model.register_buffer("counted", torch.zeros(3))
    with replicate_on_threads(model, CPU, 3) as replicas:
        assert replicas.replicas[0] is model
        for other in replicas.replicas[1:]:
            for name, parameter in model.named_parameters():
                twin = other.get_parameter(name)
                assert twin is not parameter
                assert twin.data_ptr() == parameter.data_ptr()
            assert other.get_buffer("counted") is model.get_buffer("counted")


def test_each_replica_computes_its_share_and_results_come_in_order() -> None:
    model = nn.Linear(3, 1)
    with replicate_on_threads(model, CPU, 3) as replicas:

        def compute(replica: nn.Module, index: int, batch: Tensor) -> tuple[int, int]:
            replica(batch).sum().backward()
            return list(replicas.replicas).index(replica), index

        batches = [torch.full((1, 3), float(number)) for number in range(5)]
        assert replicas.run_micro_batches(compute, batches) == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4)]
        assert model.weight.grad is not None
        assert model.weight.grad.tolist() == [[10.0] * 3]
        assert all(parameter.grad is None for other in replicas.replicas[1:] for parameter in other.parameters())


def test_an_error_in_a_thread_is_raised() -> None:
    def compute(replica: nn.Module, index: int, batch: int) -> int:
        return 1 // batch

    with pytest.raises(ZeroDivisionError), replicate_on_threads(nn.Linear(1, 1), CPU, 2) as replicas:
        replicas.run_micro_batches(compute, [1, 0])


def test_threads_are_as_many_as_cores_and_work_allow() -> None:
    assert threads_for(CPU, 9, 3 * POSITIONS_WORTH_A_THREAD - 1) == 2
    assert threads_for(CPU, 9, 3 * POSITIONS_WORTH_A_THREAD) == 2  # three would leave one of the four cores over
    assert threads_for(CPU, 9, 100 * POSITIONS_WORTH_A_THREAD) == 4
    assert threads_for(CPU, 3, 100 * POSITIONS_WORTH_A_THREAD) == 2  # a thread has a row at least
    assert threads_for(CPU, 1, 100 * POSITIONS_WORTH_A_THREAD) == 1
    assert threads_for(CPU, 9, 1) == 1
    assert threads_for(replace(CPU, size=2), 9, 100 * POSITIONS_WORTH_A_THREAD) == 1
    assert threads_for(replace(CPU, device=torch.device("cuda")), 9, 100 * POSITIONS_WORTH_A_THREAD) == 1


def test_each_thread_has_its_share_of_the_cores() -> None:
    with replicate_on_threads(nn.Linear(1, 1), CPU, 2) as replicas:
        assert replicas.run_micro_batches(lambda replica, index, batch: torch.get_num_threads(), [0, 1]) == [2, 2]
    assert torch.get_num_threads() == 4


def made_in(folder: Path, *overrides: str) -> PretrainComponents:
    """Return a run of 32 rows of 64 a step that is ready to begin."""
    (folder / "text.txt").write_text("\n".join(f"line {n} of a text is not line {n + 1}" for n in range(2000)))
    sizes = ("vocabulary.size=300", "data.row_length=64", "train.batch_rows=32", "evaluation.words=0")
    text = ("text.source.kind=files", f"text.source.paths={folder}/text.txt", f"runs={folder}")
    return build(read(PretrainConfig, None, [*sizes, *text, *overrides]), CPU)


@pytest.mark.parametrize(
    ("override", "threads", "micro_batches"),
    [
        (None, 4, [8] * 4),
        ("model.encoder.dropout=0.1", 4, [8] * 4),
        ("train.compile=true", 1, [32]),
        ("train.micro_batch_rows=16", 2, [8] * 4),
        ("train.micro_batch_rows=8", 1, [8] * 4),
    ],
)
def test_a_run_uses_threads_unless_a_setting_forbids_them(
    override: str | None, threads: int, micro_batches: list[int], tmp_path: Path
) -> None:
    made = made_in(tmp_path, *([override] if override else []))
    assert made.threads == threads
    assert [len(batch.ids_BL) for batch in made.task.micro_batches(0, 0.0)] == micro_batches


def test_without_a_compiler_training_is_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    made = made_in(tmp_path, "train.compile=true")
    assert "c++, g++, clang++" in caplog.text
    assert not made.task.compiled
    assert made.threads == 4
