from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from configs import UserError
from finetune.encoders import restore_encoder
from finetune.encoders.encoder import TextEncoder
from finetune.encoders.published import PublishedEncoder
from finetune.encoders.run import RunEncoder
from finetune.training.classifier import Classifier
from finetune.training.trainable import LowRank
from mlm.config import PretrainConfig
from tests.finetune.tiny_published import TEXTS, load, rows, save

# A layer's six linear layers as (rows, columns): query, key, value, output, and the two of the feed-forward.
BERT_LAYER = [(16, 16)] * 4 + [(32, 16), (16, 32)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bert"), "bert")


def batch(encoder: PublishedEncoder) -> tuple[Tensor, Tensor, Tensor]:
    return rows(encoder, [(text,) for text in TEXTS])


def classifier_of(encoder: TextEncoder) -> Classifier:
    return Classifier(encoder, nn.Identity()).eval()


def add_adapters(encoder: TextEncoder, settings: LowRank) -> None:
    settings.prepare(classifier_of(encoder))


def merge_adapters(encoder: TextEncoder) -> None:
    LowRank().finish(classifier_of(encoder))


def trained(encoder: nn.Module) -> int:
    return sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)


def train(encoder: PublishedEncoder, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        encoder(*batch(encoder))[:, 0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        (LowRank(), BERT_LAYER * 2),
        (LowRank(rank=3, targets=("query", "value")), BERT_LAYER[:2] * 2),
        (LowRank(rank=1, targets=("intermediate.dense",)), BERT_LAYER[4:5] * 2),
    ],
)
def test_only_the_adapters_are_trained_and_begin_as_nothing(
    folder: Path, settings: LowRank, shapes: list[tuple[int, int]]
) -> None:
    encoder = load(folder)
    before_BLD = encoder(*batch(encoder))
    add_adapters(encoder, settings)
    assert trained(encoder) == sum(settings.rank * (high + wide) for high, wide in shapes)
    torch.testing.assert_close(encoder(*batch(encoder)), before_BLD)
    flat = [parameter for level in encoder.layers() for parameter in level]
    assert sorted(map(id, flat)) == sorted(map(id, encoder.parameters()))
    assert not any(parameter.requires_grad for parameter in encoder.layers()[0])


def test_steps_change_the_adapters_and_no_other_weight(folder: Path) -> None:
    encoder = load(folder)
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    before_BLD = encoder(*batch(encoder))
    add_adapters(encoder, LowRank(rank=2))
    train(encoder, 3)
    after = {name.replace(".base_layer", ""): value for name, value in encoder.named_parameters()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not torch.allclose(encoder(*batch(encoder)), before_BLD, atol=0.01)


@torch.no_grad()
def test_an_adapter_adds_its_product_times_alpha_over_rank(folder: Path) -> None:
    encoder = load(folder)
    assert isinstance(encoder, PublishedEncoder)
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    factor_of = LowRank(rank=2, alpha=6, targets=("query",), head_factor=5).prepare(classifier_of(encoder))
    assert (factor_of("head.output.weight"), factor_of("encoder.model.lora_A")) == (5, 1)
    generator, products = torch.Generator().manual_seed(0), list[Tensor]()
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            products.append(parameter.normal_(generator=generator).clone())
    merge_adapters(encoder)
    changed = [
        after - before[name] for name, after in encoder.named_parameters() if not torch.equal(after, before[name])
    ]
    assert len(changed) == 2  # the query of each layer
    for change, down, up in zip(changed, products[::2], products[1::2], strict=True):
        torch.testing.assert_close(change, 6 / 2 * up @ down, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "albert", "xlnet", "modernbert", "deberta"])
@torch.no_grad()
def test_merging_keeps_the_outputs_and_leaves_a_plain_encoder(tmp_path: Path, name: str) -> None:
    encoder = load(save(tmp_path, name))
    plain = [(parameter_name, value.shape) for parameter_name, value in encoder.named_parameters()]
    add_adapters(encoder, LowRank(rank=2))
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1, generator=generator)
    before_BLD = encoder(*batch(encoder))
    merge_adapters(encoder)
    torch.testing.assert_close(encoder(*batch(encoder)), before_BLD, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(load(tmp_path)(*batch(encoder)), before_BLD, atol=0.01)
    assert [(parameter_name, value.shape) for parameter_name, value in encoder.named_parameters()] == plain
    assert trained(encoder) == sum(parameter.numel() for parameter in encoder.parameters())
    (tmp_path / "saved").mkdir()
    encoder.save(tmp_path / "saved")
    restored = restore_encoder("hub", tmp_path / "saved")
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(restored(*batch(encoder)), encoder(*batch(encoder)))


def test_adapters_follow_their_seed_and_leave_the_generator_alone(folder: Path) -> None:
    drawn = []
    for seed in (1, 1, 2):
        encoder = load(folder)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        add_adapters(encoder, LowRank())
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(torch.cat([p.detach().flatten() for p in encoder.parameters() if p.requires_grad]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_wrong_encoder_and_unknown_targets_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"encoder\.hub"):
        add_adapters(
            RunEncoder(
                PretrainConfig(), Tokenizer(models.WordLevel({"a": 0, "[PAD]": 1, "[MASK]": 2}, unk_token="a")), None
            ),
            LowRank(),
        )
    with pytest.raises(UserError, match=r"trainable\.targets.*'q_proj'.*dense, key, query, value"):
        add_adapters(load(folder), LowRank(targets=("query", "q_proj")))
    encoder = load(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"peft.*pip install .*\[hub\]'"):
        add_adapters(encoder, LowRank())


def test_what_is_frozen_beside_adapters_is_in_evaluation_mode(folder: Path) -> None:
    encoder = load(folder)
    classifier = Classifier(encoder, nn.Linear(encoder.width, 2))
    LowRank().prepare(classifier)
    classifier.train()
    embeddings = encoder.model.get_submodule("embeddings")
    assert not any(module.training for module in embeddings.modules())
    adapted = [module for module in encoder.modules() if any(p.requires_grad for p in module.parameters())]
    assert adapted
    assert all(module.training for module in adapted)
