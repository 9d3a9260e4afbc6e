"""Batches, losses and gradients of classification, against plain references."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.data.augment import Augmentation
from finetune.data.examples import Examples
from finetune.encoders.encoder import EncodedExample, TextEncoder
from finetune.heads.cnn import CnnHead
from finetune.training.classification import (
    POOL_BATCHES,
    Classification,
    EncodedExamples,
    ExampleBatch,
    batch_of,
    measure,
    predict,
)
from finetune.training.classifier import Classifier
from mlm.training.budget import TrainingLength, TrainingProgress
from mlm.training.loop import Intervals, LoopSettings, train
from mlm.training.optim import AdamW, Optimizer
from mlm.training.schedule import Constant
from tests.finetune import samples


def model_of(run: Path, *, dropout: float = 0.0) -> Classifier:
    torch.manual_seed(0)
    encoder = samples.encoder(run, dropout=dropout)
    return Classifier(encoder, CnnHead(filters=5, dropout=dropout).build(encoder, 2))


def task_of(
    encoder: TextEncoder, *, examples: int = 40, batch: int = 16, micro: int | None = None, seed: int = 0
) -> Classification:
    found = samples.split(train=examples)
    parts = [
        EncodedExamples(part, encoder.tokenize(part.texts, samples.LONGEST)) for part in (found.train, found.validation)
    ]
    return Classification(
        train=parts[0],
        validation=parts[1],
        world=samples.CPU,
        seed=seed,
        encoder=encoder,
        longest=samples.LONGEST,
        batch_examples=batch,
        micro_batch_examples=micro or batch,
        class_weights_C=torch.ones(2),
        label_smoothing=0.0,
        augmentation=Augmentation(),
        variants=(),
    )


class Gradients:
    """An optimizer that keeps every step's gradients and changes nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.steps: list[dict[str, Tensor]] = []

    def update(self, factor: float, applies: Tensor) -> None:
        self.steps.append({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})
        self.model.zero_grad()


def gradients(model: nn.Module, task: Classification, steps: int, threads: int = 1) -> list[dict[str, Tensor]]:
    """Return the gradients of the loop's steps, the model staying as it is."""
    kept = Gradients(model)
    intervals = Intervals(log_steps=10**6, evaluate_steps=10**6, checkpoint_steps=10**6)
    start = TrainingProgress()
    train(
        model,
        replace(task, validation=EncodedExamples(task.validation.examples.take([0]), task.validation.tokens[:1])),
        LoopSettings(
            OptimizerOf(kept),
            Constant(warmup=0),
            TrainingLength(steps=steps),
            intervals,
            clip_norm=1000000000.0,
            seed=0,
            threads=threads,
        ),
        samples.CPU,
        [],
        start=start,
    )
    return kept.steps


class OptimizerOf(Optimizer):
    def __init__(self, kept: Gradients) -> None:
        super().__init__([])
        self.update = kept.update  # type: ignore[method-assign]


def indices(task: Classification, step: int) -> list[int]:
    """Return which training examples a step reads, told by their tokens."""
    where = {example.ids: index for index, example in enumerate(task.train.tokens)}
    assert len(where) == len(task.train.tokens)
    return [
        where[tuple(ids[real].tolist())]
        for batch in task.micro_batches(step, 0.0)
        for ids, real in zip(batch.ids_BL, batch.real_BL, strict=True)
    ]


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    scale = max(value.abs().max().item() for value in theirs.values())
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours) / scale


def test_an_epoch_reads_every_example_once_in_an_order_of_its_own(run: Path) -> None:
    task = task_of(samples.encoder(run), examples=40, batch=16)
    assert task.steps_per_epoch == 3
    epochs = [[index for step in range(3 * e, 3 * e + 3) for index in indices(task, step)] for e in range(3)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [len(indices(task, step)) for step in range(3)] == [16, 16, 8]


def test_a_step_is_a_function_of_seed_and_step(run: Path) -> None:
    encoder = samples.encoder(run)
    assert indices(task_of(encoder), 4) == indices(task_of(encoder), 4)
    assert indices(task_of(encoder, seed=1), 4) != indices(task_of(encoder, seed=0), 4)
    assert indices(task_of(encoder, micro=4), 4) == indices(task_of(encoder), 4)


def test_batches_hold_examples_of_like_length(run: Path) -> None:
    encoder, rng = samples.encoder(run), np.random.default_rng(0)
    found = Examples(tuple((f"{'so ' * rng.integers(1, 28)}{n}",) for n in range(400)), np.zeros(400, np.int64))
    train = EncodedExamples(found, encoder.tokenize(found.texts, samples.LONGEST))
    task = replace(task_of(encoder, batch=8), train=train)
    padding = slots = unsorted_slots = 0
    for step in range(50):
        (batch,) = task.micro_batches(step, 0.0)
        slots += batch.ids_BL.numel()
        padding += batch.ids_BL.numel() - batch.tokens
        unsorted_slots += 8 * train.lengths[8 * step : 8 * step + 8].max()
    assert slots - padding == train.lengths.sum()
    assert padding < 0.1 * (unsorted_slots - train.lengths.sum())
    # and yet no step is told by length alone: whole epochs do not run from short to long
    means = [task.micro_batches(step, 0.0)[0].tokens for step in range(POOL_BATCHES)]
    assert sorted(means) != means


def test_the_loss_is_weighted_smoothed_cross_entropy(run: Path) -> None:
    model = model_of(run).eval()
    weights_C = torch.tensor([0.5, 2.0])
    task = replace(task_of(model.encoder), class_weights_C=weights_C, label_smoothing=0.2)
    (batch,) = task.micro_batches(0, 0.0)
    with torch.no_grad():
        logits_BC = model(batch.ids_BL, batch.real_BL, batch.types_BL)
        found = task.losses(model, batch)
    logs_BC = logits_BC - logits_BC.exp().sum(dim=1, keepdim=True).log()
    expected = 0.0
    for log_C, label in zip(logs_BC, batch.labels_B.tolist(), strict=True):
        target_C = torch.tensor([0.1, 0.1])
        target_C[label] += 0.8
        expected -= float((target_C * weights_C * log_C).sum())
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-5)
    assert int(found["correct"]) == int((logits_BC.argmax(1) == batch.labels_B).sum())


@pytest.mark.parametrize("examples", [64, 64 + 37], ids=["whole batches", "short last batch"])
def test_micro_batches_of_16_give_the_gradient_of_the_whole_batch_of_64(examples: int, run: Path) -> None:
    model = model_of(run)
    whole = task_of(model.encoder, examples=examples, batch=64)
    cut = task_of(model.encoder, examples=examples, batch=64, micro=16)
    steps = whole.steps_per_epoch
    assert [len(cut.micro_batches(step, 0.0)) for step in range(steps)] == ([4] if examples == 64 else [4, 3])
    for ours, theirs in zip(gradients(model, cut, steps), gradients(model, whole, steps), strict=True):
        assert largest_difference(ours, theirs) < 1e-6


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_drop_the_same_elements_and_have_the_same_gradient(threads: int, run: Path) -> None:
    model = model_of(run, dropout=0.4)
    task = task_of(model.encoder, examples=37, batch=16, micro=4)
    expected, cut_otherwise = gradients(model, task, 3), gradients(model, replace(task, micro_batch_examples=8), 3)
    for ours, alone, other in zip(gradients(model, task, 3, threads), expected, cut_otherwise, strict=True):
        assert largest_difference(ours, alone) < 1e-6
        assert largest_difference(other, alone) > 1e-2


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_training_on_threads_with_dropout_goes_on_bit_for_bit(stopped_at: int, run: Path) -> None:
    def trained(state: dict[str, Any] | None, first: int, last: int) -> dict[str, Any]:
        model = model_of(run, dropout=0.4)
        optimizer = AdamW(lr=0.01).build(model)
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        task = replace(task_of(model.encoder, examples=37, batch=16, micro=4), threads=2)
        intervals = Intervals(log_steps=1, evaluate_steps=10, checkpoint_steps=10)
        settings = LoopSettings(optimizer, Constant(), TrainingLength(steps=last), intervals, 1.0, seed=3, threads=2)
        train(model, task, settings, samples.CPU, [], start=TrainingProgress(first))
        return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    whole = trained(None, 0, 6)
    torch.manual_seed(99)
    resumed = trained(trained(None, 0, stopped_at), stopped_at, 6)
    for name, weight in whole["model"].items():
        assert torch.equal(resumed["model"][name], weight), name


def accelerated(model: Classifier, task: Classification, steps: int) -> list[dict[str, Tensor]]:
    """Return the gradients that Accelerate's accumulation, as its guide shows it, makes of the same micro-batches."""
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=4, cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = [batch for step in range(steps) for batch in task.micro_batches(step, 0.0)]
    loader = torch.utils.data.DataLoader(range(len(batches)), batch_size=1)  # type: ignore[var-annotated, arg-type]
    model_, optimizer_, loader_ = accelerator.prepare(model, optimizer, loader)
    found = []
    for number in loader_:
        batch = batches[int(number)]
        with accelerator.accumulate(model_):
            logits_BC = model_(batch.ids_BL, batch.real_BL, batch.types_BL)
            accelerator.backward(nn.functional.cross_entropy(logits_BC, batch.labels_B))
            if accelerator.sync_gradients:
                found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
            optimizer_.step()
            optimizer_.zero_grad()
    return found


def test_on_whole_windows_accelerate_gives_the_same(run: Path) -> None:
    model = model_of(run)
    task = task_of(model.encoder, examples=128, batch=64, micro=16)
    theirs = accelerated(model, task, 2)
    for ours, other in zip(gradients(model, task, 2), theirs, strict=True):
        assert largest_difference(ours, other) < 1e-6


def test_on_a_short_window_ours_is_the_single_batch_and_accelerate_is_not(run: Path) -> None:
    """37 examples: micro-batches of 13, 13 and 11. A mean of means over four, as theirs, weighs them otherwise."""
    model = model_of(run)
    cut = task_of(model.encoder, examples=37, batch=64, micro=16)
    whole = task_of(model.encoder, examples=37, batch=64)
    (single,) = gradients(model, whole, 1)
    (ours,) = gradients(model, cut, 1)
    (theirs,) = accelerated(model, cut, 1)
    assert largest_difference(ours, single) < 1e-6
    # Theirs divides three means by four, and gives the eleven of the last as much say as each thirteen before.
    parts = [part_gradient(model, batch) for batch in cut.micro_batches(0, 0.0)]
    expected = {name: sum(part[name] for part in parts) / 4 for name in single}
    assert largest_difference(theirs, expected) < 1e-6  # type: ignore[arg-type]
    assert largest_difference(theirs, single) > 0.1


def part_gradient(model: Classifier, batch: ExampleBatch) -> dict[str, Tensor]:
    model.zero_grad()
    logits_BC = model(batch.ids_BL, batch.real_BL, batch.types_BL)
    nn.functional.cross_entropy(logits_BC, batch.labels_B).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_prediction_keeps_the_order_of_the_examples(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(run).eval()
    found = samples.examples(30)
    tokens = model.encoder.tokenize(found.texts, samples.LONGEST)
    monkeypatch.setattr("finetune.training.classification.EVALUATION_TOKENS", 64)  # many batches
    together = predict(model, tokens, model.encoder.pad_id, samples.CPU)
    alone = [alone_prediction(model, [example]) for example in tokens]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)
    np.testing.assert_allclose(together.sum(axis=1), 1.0)
    monkeypatch.setattr("finetune.training.classification.EVALUATION_TOKENS_OF_A_THREAD", 64)
    on_threads = predict(model, tokens, model.encoder.pad_id, samples.CPU, threads=3)
    np.testing.assert_allclose(on_threads, together, atol=1e-6)


def alone_prediction(model: Classifier, tokens: Sequence[EncodedExample]) -> NDArray[np.float32]:
    batch = batch_of(tokens, np.zeros(1, np.int64), 0, torch.device("cpu"))
    with torch.no_grad():
        chances: NDArray[np.float32] = model(batch.ids_BL, batch.real_BL, batch.types_BL).softmax(dim=1).numpy()
    return chances


def test_the_loss_among_the_metrics_is_the_mean_cross_entropy() -> None:
    chances = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    assert measure(np.array([0, 1, 1]), chances)["loss"] == pytest.approx(-np.log(0.5 * 0.1 * 0.8) / 3)


def test_augmented_texts_are_read_anew_each_epoch(run: Path) -> None:
    encoder = samples.encoder(run)
    task = replace(task_of(encoder, examples=16), augmentation=Augmentation(drop=0.4, probability=1.0))
    plain = task_of(encoder, examples=16)
    epochs = [task.micro_batches(epoch, 0.0)[0].tokens for epoch in range(3)]
    assert len(set(epochs)) == 3
    assert max(epochs) < plain.micro_batches(0, 0.0)[0].tokens
    assert torch.equal(task.micro_batches(1, 0.0)[0].ids_BL, task.micro_batches(1, 0.0)[0].ids_BL)


def test_frozen_layers_stay_as_they_are_without_dropout_and_without_a_backward_pass(run: Path) -> None:
    torch.manual_seed(0)
    encoder = samples.encoder(run, dropout=0.5)
    model = Classifier(encoder, CnnHead(filters=5).build(encoder, 2))
    model.freeze(1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    task = task_of(encoder)
    optimizer = AdamW(lr=0.1).build(model)
    model.train()
    (batch,) = task.micro_batches(0, 0.0)
    first, last = encoder.encoder.blocks
    recorded: list[Tensor] = []
    hook = first.register_forward_hook(lambda module, inputs, output: recorded.append(output))
    for _ in range(2):
        task.losses(model, batch)["loss"].backward()  # type: ignore[no-untyped-call]
    hook.remove()
    assert not any(hidden.requires_grad for hidden in recorded)  # nothing to go back through
    assert torch.equal(*recorded)  # no dropout up to here
    assert last.training
    optimizer.update(1.0, torch.tensor(True))
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    expected = {
        name for name in before if name.startswith(("head.", "encoder.encoder.blocks.1", "encoder.encoder.fin"))
    }
    assert changed == expected
