"""The heads against plain references, and what every head has to hold."""

from pathlib import Path

import pytest
import torch
from torch import nn

from configs import UserError
from finetune.encoders.encoder import TextEncoder
from finetune.heads import Head
from finetune.heads.cnn import CnnHead, KimCnn
from finetune.heads.linear import LinearHead, PooledLinear, Pooling
from finetune.training.classification import ExampleBatch, batch_of
from finetune.training.classifier import Classifier
from tests.finetune import samples

HEADS: dict[str, Head] = {
    "cnn": CnnHead(filters=5, dropout=0.0),
    "cnn, one wide filter": CnnHead(widths=(9,), filters=3, dropout=0.0),
    "mean": LinearHead(pooling="mean", dropout=0.0),
    "max": LinearHead(pooling="max", dropout=0.0),
    "cls": LinearHead(pooling="cls", dropout=0.0),
}


@pytest.fixture(scope="module")
def encoder(run_with_cls: Path) -> TextEncoder:
    return samples.encoder(run_with_cls).eval()


def build(config: Head, encoder: TextEncoder, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return config.build(encoder, classes).eval()


def batch(encoder: TextEncoder, count: int = 8) -> ExampleBatch:
    found = samples.examples(count)
    tokens = encoder.tokenize(found.texts, samples.LONGEST)
    return batch_of(tokens, found.labels, encoder.pad_id, torch.device("cpu"))


def test_the_cnn_is_kim_2014_written_out(encoder: TextEncoder) -> None:
    head = build(CnnHead(widths=(2, 3), filters=4), encoder)
    assert isinstance(head, KimCnn)
    lengths = [1, 2, 5, 7]
    hidden_BLD, real_BL = samples.rows(lengths, encoder.width)
    logits_BC = head(hidden_BLD, real_BL, torch.zeros_like(real_BL, dtype=torch.int64))
    for row, length in enumerate(lengths):
        answers = []
        for convolution, span in zip(head.convolutions, (2, 3), strict=True):
            assert isinstance(convolution, nn.Conv1d)
            assert convolution.bias is not None
            text_LD = torch.cat([hidden_BLD[row, :length], torch.zeros(span - 1, encoder.width)])
            for kernel_DS, bias in zip(convolution.weight, convolution.bias, strict=True):
                windows = [(text_LD[at : at + span].T * kernel_DS).sum() + bias for at in range(length)]
                answers.append(torch.stack([window.clamp(min=0) for window in windows]).max())
        expected_C = head.output.weight @ torch.stack(answers) + head.output.bias
        torch.testing.assert_close(logits_BC[row], expected_C)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_linear_heads_pool_what_they_say(pooling: Pooling, encoder: TextEncoder) -> None:
    head = build(LinearHead(pooling=pooling), encoder)
    assert isinstance(head, PooledLinear)
    assert encoder.cls_id is not None
    lengths = [1, 3, 6]
    hidden_BLD, real_BL = samples.rows(lengths, encoder.width)
    ids_BL = torch.full(real_BL.shape, 9)
    places = [0, 2, 5]  # as XLNet's [CLS] is the last token
    ids_BL[range(3), places] = encoder.cls_id
    logits_BC = head(hidden_BLD, real_BL, ids_BL)
    for row, length in enumerate(lengths):
        states_LD = hidden_BLD[row, :length]
        pooled_D = {"mean": states_LD.mean(0), "max": states_LD.max(0).values, "cls": states_LD[places[row]]}[pooling]
        torch.testing.assert_close(logits_BC[row], head.output.weight @ pooled_D + head.output.bias)


@pytest.mark.parametrize("name", HEADS)
def test_padding_changes_no_prediction(name: str, encoder: TextEncoder) -> None:
    model = Classifier(encoder, build(HEADS[name], encoder)).eval()
    found = samples.examples(8)
    tokens = sorted(encoder.tokenize(found.texts, samples.LONGEST), key=lambda example: len(example.ids))
    tokens = [*tokens, *encoder.tokenize([("a",)], samples.LONGEST)]  # shorter than the filters
    assert len({len(example.ids) for example in tokens}) > 2
    device = torch.device("cpu")
    together = batch_of(tokens, found.labels, encoder.pad_id, device)
    logits_BC = model(together.ids_BL, together.real_BL, together.types_BL)
    for row, example in enumerate(tokens):
        alone = batch_of([example], found.labels[:1], encoder.pad_id, device)
        assert alone.real_BL.all()
        torch.testing.assert_close(
            logits_BC[row], model(alone.ids_BL, alone.real_BL, alone.types_BL)[0], atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("name", ["cnn", "cls"])
def test_a_head_overfits_eight_examples(name: str, run_with_cls: Path) -> None:
    encoder = samples.encoder(run_with_cls)
    model = Classifier(encoder, build(HEADS[name], encoder, classes=2))
    rows = batch(encoder)
    assert len(set(rows.labels_B.tolist())) == 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = nn.functional.cross_entropy(model(rows.ids_BL, rows.real_BL, rows.types_BL), rows.labels_B)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.02


def test_cls_pooling_without_a_cls_token_is_a_mistake(run: Path) -> None:
    with pytest.raises(UserError, match=r"head\.pooling"):
        LinearHead(pooling="cls").build(samples.encoder(run), 2)
