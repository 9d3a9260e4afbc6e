import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from configs import read
from mlm.config import PretrainConfig
from mlm.model.attention import SegmentMask
from mlm.model.encoder import (
    Embeddings,
    Encoder,
    EncoderConfig,
    LearnedPositions,
    PostNorm,
    PreNorm,
    RotaryPositions,
    SinusoidalPositions,
    sinusoidal_positions,
)
from mlm.model.feedforward import ACTIVATIONS, FeedForward, GatedFeedForward
from mlm.model.heads import MaskedLanguageModel, ModelConfig, Transform
from mlm.model.initialize import initialize
from tests.mlm.model.renamed import BERT, MODERNBERT, renamed
from tests.mlm.samples import rows_of, segment_mask_of

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(ROOT.glob("configs/pretrain/*.yaml"))
POSITIONS = [SinusoidalPositions(), LearnedPositions(), RotaryPositions()]


def encoder_config(**settings: object) -> EncoderConfig:
    small = {"width": 16, "heads": 2, "feedforward_width": 24, "layers": 2}
    return EncoderConfig.model_validate(small | settings)


def randomize(model: nn.Module) -> None:
    """Give every parameter numbers that show where it went, norms and biases too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + (parameter.ndim == 1) * 0.5)


@pytest.mark.parametrize(("B", "L", "M"), [(1, 1, 1), (2, 7, 3), (3, 12, 0)])
@pytest.mark.parametrize("positions", POSITIONS, ids=lambda positions: positions.kind)
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("transform", [False, True])
def test_hidden_states_have_the_rows_shape_and_scores_one_row_a_prediction(
    B: int, L: int, M: int, positions: RotaryPositions, norm: str, transform: bool
) -> None:
    config = ModelConfig(encoder=encoder_config(positions=positions, norm=norm), transform=transform)
    model = MaskedLanguageModel(config, vocabulary_size=30, row_length=12)
    ids_BL, segment_mask = torch.randint(30, (B, L)), segment_mask_of([[L]] * B, L)
    assert model.encoder(ids_BL, segment_mask).shape == (B, L, 16)
    assert model(ids_BL, segment_mask, torch.randint(L, (B, M))).shape == (B * M, 30)


def test_the_output_embedding_is_the_input_embedding() -> None:
    model = MaskedLanguageModel(ModelConfig(encoder=encoder_config()), vocabulary_size=30, row_length=8)
    assert [name for name, tensor in model.state_dict().items() if tensor.shape == (30, 16)] == [
        "encoder.embeddings.tokens.weight"
    ]
    assert model.output_bias.shape == (30,)


def test_the_tied_embedding_gets_the_gradients_of_both_its_uses() -> None:
    torch.manual_seed(0)
    model = MaskedLanguageModel(ModelConfig(encoder=encoder_config()), vocabulary_size=30, row_length=8).double()
    embedding_VD = model.encoder.embeddings.tokens.weight
    ids_BL, predicted_M = torch.randint(30, (2, 8)), torch.tensor([1, 6, 9, 12])
    segment_mask, upstream_MV = segment_mask_of([[8], [5]], 8, torch.float64), torch.randn(4, 30).double()
    (tied,) = torch.autograd.grad(model(ids_BL, segment_mask, predicted_M.view(2, 2) % 8), embedding_VD, upstream_MV)

    output_VD = embedding_VD.detach().clone().requires_grad_()
    logits_MV = model.encoder(ids_BL, segment_mask).flatten(0, 1)[predicted_M] @ output_VD.T
    as_input, as_output = torch.autograd.grad(logits_MV, (embedding_VD, output_VD), upstream_MV)
    torch.testing.assert_close(tied, as_input + as_output, rtol=0, atol=1e-12)
    assert as_input.norm() > 0.01 * tied.norm()
    assert as_output.norm() > 0.01 * tied.norm()


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", POSITIONS, ids=lambda positions: positions.kind)
@pytest.mark.parametrize(("transform", "gated", "biases"), [(False, True, True), (True, False, False)])
def test_scores_and_gradients_are_those_of_a_last_block_and_head_at_every_position(
    layers: int, norm: str, positions: RotaryPositions, transform: bool, gated: bool, biases: bool
) -> None:
    encoder = encoder_config(layers=layers, norm=norm, positions=positions, gated=gated, biases=biases)
    model = MaskedLanguageModel(ModelConfig(encoder=encoder, transform=transform), 30, 12).double()
    randomize(model)
    ids_BL, segment_mask = torch.randint(30, (3, 12)), segment_mask_of([[5, 7], [12], [3]], 12, torch.float64)
    predicted_BM, parameters = torch.tensor([[0, 7, 7], [11, 2, 5], [2, 0, 8]]), list(model.parameters())
    sparse_MV = model(ids_BL, segment_mask, predicted_BM)
    hidden_LD = model.transform(model.encoder(ids_BL, segment_mask)).flatten(0, 1)
    dense_LV = hidden_LD @ model.encoder.embeddings.tokens.weight.T + model.output_bias
    dense_MV = dense_LV[(predicted_BM + torch.tensor([[0], [12], [24]])).flatten()]
    torch.testing.assert_close(sparse_MV, dense_MV, rtol=0, atol=1e-12)
    upstream_MV = torch.randn_like(sparse_MV)
    gradients = [torch.autograd.grad(scores, parameters, upstream_MV) for scores in (sparse_MV, dense_MV)]
    for sparse, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-11)


@pytest.mark.parametrize("length", [1, 7, 40])
@pytest.mark.parametrize("width", [2, 6, 64])
def test_sinusoidal_positions_are_the_formula_of_vaswani_et_al(length: int, width: int) -> None:
    table_LD = sinusoidal_positions(length, width)
    assert table_LD.shape == (length, width)
    for position in {0, length // 2, length - 1}:
        for i in {0, width // 4, width // 2 - 1}:
            angle = position / 10_000 ** (2 * i / width)
            assert table_LD[position, 2 * i].item() == pytest.approx(math.sin(angle), rel=0, abs=6e-8)
            assert table_LD[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), rel=0, abs=6e-8)


@pytest.mark.parametrize("positions", POSITIONS, ids=lambda positions: positions.kind)
@pytest.mark.parametrize("embedding_norm", [False, True])
def test_embeddings_add_their_positions_within_the_segment(positions: RotaryPositions, embedding_norm: bool) -> None:
    torch.manual_seed(0)
    embeddings = Embeddings(encoder_config(positions=positions, embedding_norm=embedding_norm), 30, 12)
    ids_BL = torch.randint(30, (2, 12))
    _, positions_BL = rows_of([[5, 7], [4]], 12)
    expected_BLD = embeddings.tokens.weight[ids_BL]
    if embeddings.positions is not None:
        expected_BLD = expected_BLD + embeddings.positions.weight[positions_BL]
    if isinstance(positions, SinusoidalPositions):
        expected_BLD = expected_BLD * math.sqrt(16) + sinusoidal_positions(12, 16)[positions_BL]
    if embedding_norm:
        mean, variance = expected_BLD.mean(-1, keepdim=True), expected_BLD.var(-1, keepdim=True, correction=0)
        expected_BLD = (expected_BLD - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(embeddings(ids_BL, positions_BL), expected_BLD, rtol=0, atol=2e-6)
    assert (embeddings.positions is not None) == isinstance(positions, LearnedPositions)


def test_activations_are_their_formulas() -> None:
    for x in (-3.0, -0.5, 0.0, 0.7, 4.0):
        formulas = {
            "relu": max(x, 0.0),
            "gelu": x * (1 + math.erf(x / math.sqrt(2))) / 2,
            "swish": x / (1 + math.exp(-x)),
        }
        values = {name: function(torch.tensor(x, dtype=torch.float64)).item() for name, function in ACTIVATIONS.items()}
        assert values == pytest.approx(formulas, rel=0, abs=1e-14)


@pytest.mark.parametrize("biases", [True, False])
def test_feedforward_layers_are_their_formulas(biases: bool) -> None:
    torch.manual_seed(0)
    hidden_BLD = torch.randn(2, 3, 8).double()
    plain = FeedForward(8, 20, "relu", biases).double()
    inner_BLF = (hidden_BLD @ plain.input.weight.T + (plain.input.bias if biases else 0)).clamp(min=0)
    expected_BLD = inner_BLF @ plain.output.weight.T + (plain.output.bias if biases else 0)
    torch.testing.assert_close(plain(hidden_BLD), expected_BLD, rtol=0, atol=1e-14)

    gated = GatedFeedForward(8, 20, "relu", biases).double()
    wide_BLF = hidden_BLD @ gated.input.weight.T + (gated.input.bias if biases else 0)
    inner_BLF = wide_BLF[..., :20].clamp(min=0) * wide_BLF[..., 20:]
    expected_BLD = inner_BLF @ gated.output.weight.T + (gated.output.bias if biases else 0)
    torch.testing.assert_close(gated(hidden_BLD), expected_BLD, rtol=0, atol=1e-14)


def test_residual_sums_are_normalized_before_or_after() -> None:
    torch.manual_seed(0)
    hidden_BLD, residual_BLD, norm, double = (
        torch.randn(2, 3, 8),
        torch.randn(2, 3, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 8),
    )
    before, after = PreNorm(double, norm, 0.0), PostNorm(double, norm, 0.0)
    assert torch.equal(before(hidden_BLD, residual_BLD), residual_BLD + double(norm(hidden_BLD)))
    assert torch.equal(after(hidden_BLD, residual_BLD), norm(residual_BLD + double(hidden_BLD)))


@pytest.mark.parametrize(("norm", "embedding_norm", "norms"), [("pre", False, 5), ("pre", True, 5), ("post", True, 5)])
def test_a_pre_norm_encoder_normalizes_its_embeddings_once(norm: str, embedding_norm: bool, norms: int) -> None:
    encoder = Encoder(encoder_config(norm=norm, embedding_norm=embedding_norm), vocabulary_size=30, row_length=8)
    assert sum(isinstance(module, nn.LayerNorm) for module in encoder.modules()) == norms


def test_without_biases_only_the_output_over_the_vocabulary_has_one() -> None:
    config = ModelConfig(encoder=encoder_config(biases=False, gated=True), transform=True)
    model = MaskedLanguageModel(config, vocabulary_size=30, row_length=8)
    assert [name for name, _ in model.named_parameters() if "bias" in name] == ["output_bias"]


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    encoder = Encoder(encoder_config(dropout=0.5), vocabulary_size=30, row_length=8)
    ids_BL, segment_mask = torch.randint(30, (2, 8)), segment_mask_of([[8], [8]], 8)
    assert not torch.equal(encoder(ids_BL, segment_mask), encoder(ids_BL, segment_mask))
    encoder.eval()
    assert torch.equal(encoder(ids_BL, segment_mask), encoder(ids_BL, segment_mask))


def expected_deviation(name: str, parameter: Tensor, config: EncoderConfig) -> float:
    """Return the standard deviation that the table in `mlm.model.initialize` gives a matrix."""
    if "embeddings.tokens" in name:
        return config.width**-0.5 if config.positions.kind == "sinusoidal" else 0.02
    if "embeddings.positions" in name:
        return 0.02
    depth = math.sqrt(2 * config.layers) if config.norm == "pre" and "sublayer.output" in name else 1.0
    return 1 / math.sqrt(parameter.shape[1]) / depth


@pytest.mark.parametrize("positions", POSITIONS, ids=lambda positions: positions.kind)
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("gated", [False, True])
def test_initial_weights_are_those_of_the_table(positions: RotaryPositions, norm: str, gated: bool) -> None:
    """Of n normal numbers the mean is off by s / sqrt(n), the deviation by s / sqrt(2n): bounds are 5 of these."""
    config = encoder_config(width=64, feedforward_width=160, layers=3, positions=positions, norm=norm, gated=gated)
    model = MaskedLanguageModel(ModelConfig(encoder=config, transform=True), vocabulary_size=300, row_length=100)
    initialize(model, config, seed=1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name
            continue
        deviation, n = expected_deviation(name, parameter, config), parameter.numel()
        assert abs(parameter.mean().item()) < 5 * deviation / math.sqrt(n), name
        assert abs(parameter.std().item() / deviation - 1) < 5 / math.sqrt(2 * n), name
        within = (parameter.abs() < deviation).double().mean().item()
        share = math.erf(1 / math.sqrt(2))  # of a normal distribution within one standard deviation
        assert abs(within - share) < 5 * math.sqrt(share * (1 - share) / n), name


def test_narrow_embeddings_are_projected_to_the_width_and_the_head_back() -> None:
    config = encoder_config(embedding_width=100, width=160, heads=4, positions=LearnedPositions())
    model = MaskedLanguageModel(ModelConfig(encoder=config, transform=True), vocabulary_size=300, row_length=12)
    initialize(model, config, seed=0)
    embeddings, segment_mask = model.encoder.embeddings, segment_mask_of([[12]], 12)
    ids_BL = torch.arange(12)[None]
    assert embeddings.positions is not None
    assert isinstance(embeddings.projection, nn.Linear)
    assert isinstance(model.transform, Transform)
    narrow_BLE = embeddings.norm(embeddings.tokens(ids_BL) + embeddings.positions(segment_mask.positions_BL))
    assert narrow_BLE.shape == (1, 12, 100)
    torch.testing.assert_close(embeddings(ids_BL, segment_mask.positions_BL), embeddings.projection(narrow_BLE))
    assert model(ids_BL, segment_mask, ids_BL).shape == (12, 300)
    assert embeddings.projection.weight.std().item() == pytest.approx(100**-0.5, rel=0.03)
    assert model.transform.dense.weight.std().item() == pytest.approx(160**-0.5, rel=0.03)
    assert embeddings.tokens.weight.std().item() == pytest.approx(0.02, rel=0.03)
    with pytest.raises(ValueError, match="transform"):
        ModelConfig(encoder=config)


def test_initial_weights_are_a_function_of_the_seed() -> None:
    config = encoder_config()

    def weights(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        model = MaskedLanguageModel(ModelConfig(encoder=config), vocabulary_size=30, row_length=8)
        before = torch.get_rng_state()
        initialize(model, config, seed)
        assert torch.equal(torch.get_rng_state(), before)
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights(3, global_seed=0), weights(3, global_seed=1))
    assert not torch.equal(weights(3, global_seed=0), weights(4, global_seed=0))


def small(name: str) -> PretrainConfig:
    """Return a shipped recipe, small in every size but the same in its architecture."""
    sizes = ["width=32", "heads=4", "feedforward_width=48", "layers=3", "dropout=0"]
    overrides = [f"model.encoder.{size}" for size in sizes] + ["vocabulary.size=270", "data.row_length=100"]
    return read(PretrainConfig, ROOT / f"configs/pretrain/{name}.yaml", overrides)


def scores_of(model: MaskedLanguageModel, ids_BL: Tensor, inside_BL: Tensor) -> Tensor:
    """Return the scores at the tokens of rows of one segment each."""
    positions_BL = torch.arange(ids_BL.shape[1]).expand_as(ids_BL)
    segment_mask = SegmentMask.of(inside_BL.int(), positions_BL, model.output_bias.dtype)
    scores: Tensor = model(ids_BL, segment_mask, positions_BL)
    return scores[inside_BL.flatten()]


def padded_rows() -> tuple[Tensor, Tensor]:
    inside_BL = torch.arange(100) < torch.tensor([[100], [37], [1]])
    return torch.randint(5, 270, (3, 100)) * inside_BL, inside_BL


@torch.no_grad()
def test_the_bert_recipe_is_bert_for_masked_lm_weight_for_weight() -> None:
    recipe = small("bert")
    model = MaskedLanguageModel(recipe.model, recipe.vocabulary.size, recipe.data.row_length).double().eval()
    randomize(model)
    theirs = BertForMaskedLM(
        BertConfig(
            vocab_size=270,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=100,
            hidden_act="silu",
            layer_norm_eps=1e-5,
        )
    )
    state = renamed(model.state_dict(), BERT)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    state["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(2, 32)
    theirs.load_state_dict(state, strict=True)
    theirs.train(mode=False)

    ids_BL, inside_BL = padded_rows()
    expected_BLV = theirs.double()(ids_BL, attention_mask=inside_BL.long()).logits
    torch.testing.assert_close(scores_of(model, ids_BL, inside_BL), expected_BLV[inside_BL], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_modern_recipe_is_modernbert_for_masked_lm_weight_for_weight() -> None:
    recipe = small("modern")
    model = MaskedLanguageModel(recipe.model, recipe.vocabulary.size, recipe.data.row_length).eval()
    randomize(model)
    assert isinstance(recipe.model.encoder.positions, RotaryPositions)
    theirs = ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=270,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=100,
            hidden_activation="silu",
            classifier_activation="silu",
            # From 5.4 to 5.17, transformers refuses layers of one kind: this window holds all positions.
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            local_attention=200,
            rope_parameters={
                kind: {"rope_type": "default", "rope_theta": recipe.model.encoder.positions.theta}
                for kind in ("full_attention", "sliding_attention")
            },
            pad_token_id=0,
            bos_token_id=2,
            cls_token_id=2,
            eos_token_id=3,
            sep_token_id=3,
        )
    )
    state = renamed(model.state_dict(), MODERNBERT)
    state["decoder.weight"] = state["model.embeddings.tok_embeddings.weight"]
    theirs.load_state_dict(state, strict=True)
    theirs.train(mode=False)

    ids_BL, inside_BL = padded_rows()
    expected_BLV = theirs(ids_BL, attention_mask=inside_BL.long()).logits
    torch.testing.assert_close(scores_of(model, ids_BL, inside_BL), expected_BLV[inside_BL], rtol=0, atol=3e-5)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_builds_a_model(path: Path) -> None:
    recipe = read(PretrainConfig, path)
    assert recipe.name == path.stem
    L, V = recipe.data.row_length, recipe.vocabulary.size
    with torch.device("meta"):
        model = MaskedLanguageModel(recipe.model, V, L)
        segment_mask = SegmentMask.of(
            torch.ones(2, L, dtype=torch.int32), torch.zeros(2, L, dtype=torch.int64), torch.float32
        )
        logits_MV = model(torch.zeros(2, L, dtype=torch.int64), segment_mask, torch.zeros(2, 9, dtype=torch.int64))
    assert logits_MV.shape == (18, V)
    assert len(model.encoder.blocks) == recipe.model.encoder.layers


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_opens_with_a_comment_that_holds_its_command(path: Path) -> None:
    comment = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))
    assert comment is not None
    command = re.search(r"^#   python -m mlm\.pretrain(.*)$", comment.group(), re.MULTILINE)
    assert command is not None
    words = shlex.split(command.group(1))
    yaml = next((ROOT / word for word in words if "=" not in word), None)
    assert read(PretrainConfig, yaml, [word for word in words if "=" in word]).name == path.stem
    assert "# Cost: " in comment.group()
    assert "Expected " in comment.group()


def test_the_quick_start_is_the_defaults() -> None:
    assert read(PretrainConfig, ROOT / "configs/pretrain/quickstart.yaml") == PretrainConfig()


@pytest.mark.parametrize(
    ("name", "width", "heads", "feedforward_width", "layers"),
    [("vanilla", 512, 8, 2048, 3), ("vanilla_large", 1024, 8, 2048, 6)],
)
def test_the_vanilla_recipes_are_the_encoder_of_vaswani_et_al_with_swish(
    name: str, width: int, heads: int, feedforward_width: int, layers: int
) -> None:
    recipe = read(PretrainConfig, ROOT / f"configs/pretrain/{name}.yaml")
    expected = EncoderConfig(
        width=width,
        heads=heads,
        feedforward_width=feedforward_width,
        layers=layers,
        norm="post",
        embedding_norm=False,
        activation="swish",
        gated=False,
        positions=SinusoidalPositions(),
        biases=True,
        dropout=0.1,
    )
    assert recipe.model == ModelConfig(encoder=expected, transform=False)
