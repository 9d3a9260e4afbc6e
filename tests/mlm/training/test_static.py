"""The needs of fast devices: steps of the same shapes, so that nothing is compiled anew, and no wait for the device."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from mlm.build import compile_blocks
from mlm.data.masking import Masking
from mlm.distributed.device import with_precision
from mlm.distributed.threads import ThreadReplicas
from mlm.distributed.world import init_world
from mlm.model.dropout import seed_dropout
from mlm.model.encoder import EncoderConfig
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from mlm.objectives.masked import MaskedLMTask
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Intervals, LoopSettings, take_step
from mlm.training.optim import AdamW
from mlm.training.schedule import Linear
from tests.mlm.samples import model_of, sentences, task_of

STEPS = 12
NEVER = 1_000_000

traces = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
"""The tracer looks at every attribute of a tensor."""


@pytest.fixture
def task() -> MaskedLMTask:
    """Return a task whose rows hold different numbers of texts, and more hidden tokens at the end than at first."""
    task = replace(task_of(sentences(30), masking=Masking(rate=0.1, final_rate=0.4)), compiled=True)
    filled = {batch.targets for step in range(STEPS) for batch in task.micro_batches(step, step / STEPS)}
    assert len(filled) > 3
    return task


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    """Begin without what other tests have compiled, and leave nothing."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def steps(task: MaskedLMTask, model: MaskedLanguageModel, first: int, count: int) -> None:
    """Take steps, with their optimizer, without ever telling of them."""
    settings = LoopSettings(
        AdamW().build(model),
        Linear(warmup=0.1),
        TrainingLength(steps=STEPS),
        intervals=Intervals(log_steps=NEVER, evaluate_steps=NEVER, checkpoint_steps=NEVER),
        clip_norm=1.0,
        seed=0,
    )
    for step in range(first, first + count):
        take_step(ThreadReplicas(model, [model], None), task, settings, task.world, TrainingProgress(step=step))


def judge(task: MaskedLMTask, model: nn.Module) -> None:
    model.eval()
    task.evaluate(model)
    model.train()


@traces
@pytest.mark.usefixtures("compiled_anew")
def test_compiled_blocks_drop_by_the_key_too(task: MaskedLMTask) -> None:
    encoder = EncoderConfig(width=16, heads=2, feedforward_width=24, layers=2, dropout=0.4)
    model, batch = model_of(ModelConfig(encoder=encoder)), task.micro_batches(0, 0.0)[0]
    for block in model.encoder.blocks:
        block.compile(dynamic=False, backend="eager", fullgraph=True)

    def loss(*key: int) -> float:
        seed_dropout(*key)
        return task.losses(model, batch)["loss"].item()

    assert loss(0, 0, 0) == loss(0, 0, 0) != loss(0, 0, 1)


@traces
@pytest.mark.usefixtures("compiled_anew")
def test_after_a_step_and_an_evaluation_no_block_is_recompiled(task: MaskedLMTask) -> None:
    # Three blocks: the first, which reads normed embeddings, one in the middle, and the last, which computes less.
    config = ModelConfig(encoder=EncoderConfig(width=16, heads=2, feedforward_width=24, layers=3))
    model = model_of(config)
    for block in model.encoder.blocks:
        block.compile(dynamic=False, backend="eager")  # what is traced, and when, is the same for every backend
    steps(task, model, 0, 1)
    judge(task, model)
    with torch.compiler.set_stance("fail_on_recompile"):
        steps(task, model, 1, STEPS - 1)
        judge(task, model)
        with pytest.raises(RuntimeError, match="recompile"):
            steps(replace(task, batch_rows=5, micro_batch_rows=5), model, 0, 1)


@pytest.fixture
def on_gpu(task: MaskedLMTask) -> tuple[MaskedLMTask, MaskedLanguageModel]:
    """Return task and model on a GPU, compiled as they are shipped."""
    world = with_precision(init_world(), "auto")
    task = replace(task, world=world, compiled=True, heldout=[batch.to(world.device) for batch in task.heldout])
    model = model_of(ModelConfig(encoder=EncoderConfig(width=32, heads=2, feedforward_width=48, layers=3)))
    model.to(world.device)
    compile_blocks(model)
    return task, model


@pytest.mark.gpu
@traces
@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_step_never_waits_for_the_device(on_gpu: tuple[MaskedLMTask, MaskedLanguageModel], compiled: bool) -> None:
    task, model = on_gpu
    if not compiled:
        task, model = replace(task, compiled=False), model_of().to(task.world.device)
    steps(task, model, 0, 2)  # whose first use of kernels and memory may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(task, model, 2, STEPS - 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@traces
@pytest.mark.usefixtures("compiled_anew")
def test_the_shipped_compilation_never_recompiles_on_a_gpu(
    on_gpu: tuple[MaskedLMTask, MaskedLanguageModel],
) -> None:
    task, model = on_gpu
    steps(task, model, 0, 1)
    judge(task, model)
    with torch.compiler.set_stance("fail_on_recompile"):
        steps(task, model, 1, STEPS - 1)
        judge(task, model)
