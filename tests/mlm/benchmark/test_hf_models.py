"""BERT and torch's own encoder, beside which ours is measured, learn the same: loss and gradients are equal."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from mlm.benchmark.hf_models import TorchEncoder, bert, unpacked
from mlm.data.batches import IGNORED
from mlm.model.encoder import EncoderConfig, LearnedPositions
from mlm.model.heads import MaskedLanguageModel, ModelConfig
from tests.mlm.model.renamed import BERT, TORCH_ENCODER, renamed
from tests.mlm.samples import ROW_LENGTH, VOCABULARY, sentences, task_of

ENCODER = EncoderConfig(
    width=16,
    heads=2,
    feedforward_width=24,
    layers=3,
    norm="post",
    activation="gelu",
    positions=LearnedPositions(),
)


@pytest.mark.parametrize(("build", "renamings"), [(bert, BERT), (TorchEncoder, TORCH_ENCODER)])
def test_loss_and_gradients_are_ours_on_the_same_masks(
    build: Callable[..., nn.Module], renamings: Sequence[tuple[str, str]]
) -> None:
    torch.manual_seed(0)
    ours = MaskedLanguageModel(ModelConfig(encoder=ENCODER, transform=True), VOCABULARY, ROW_LENGTH).double()
    theirs = build(ENCODER, VOCABULARY, ROW_LENGTH).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, 0.3 * (parameter.ndim == 1), 0.3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(renamed(dict(ours.named_parameters()), renamings).get(name, torch.zeros(())))
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # BERT's own is smaller

    task = task_of(sentences(40))
    (batch,) = task.micro_batches(0, 0.0)
    mean = task.losses(ours, batch)["loss"] / batch.targets
    mean.backward()  # type: ignore[no-untyped-call]
    loss: Any = theirs(**unpacked(batch))["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(mean.item(), rel=1e-12)

    expected = renamed({name: p.grad for name, p in ours.named_parameters() if p.grad is not None}, renamings)
    compared = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None and name in expected}
    assert compared.keys() == expected.keys()
    for name, gradient in compared.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12)


def test_unpacked_rows_hold_every_segment_and_label_once() -> None:
    (batch,) = task_of(sentences(40)).micro_batches(0, 0.0)
    rows = unpacked(batch)
    expected = []
    for ids_L, segments_L, predicted_M, labels_M in zip(
        batch.ids_BL.tolist(),
        batch.segments_BL.tolist(),
        batch.predicted_BM.tolist(),
        batch.labels_BM.tolist(),
        strict=True,
    ):
        labels = {place: label for place, label in zip(predicted_M, labels_M, strict=True) if label != IGNORED}
        for segment in range(1, max(segments_L) + 1):
            inside = [place for place in range(ROW_LENGTH) if segments_L[place] == segment]
            expected.append(([ids_L[place] for place in inside], [labels.get(place, IGNORED) for place in inside]))
    found = [
        (ids_L[mask_L == 1].tolist(), labels_L[mask_L == 1].tolist())
        for ids_L, mask_L, labels_L in zip(rows["input_ids"], rows["attention_mask"], rows["labels"], strict=True)
    ]
    assert found == expected
    assert (rows["labels"][rows["attention_mask"] == 0] == IGNORED).all()
