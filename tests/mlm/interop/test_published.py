"""Published checkpoints in our layers: equal to transformers' own, or refused by name."""

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("transformers", reason="published models need the extra hub")

from configs import UserError
from mlm.interop import bert, comparison, conversion, hub, modernbert, published
from tests.mlm.interop import tiny

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the folder of a tiny model, which is saved once."""
    folder = tmp_path_factory.mktemp("published")

    def of(kind: str) -> Path:
        return folder / kind if (folder / kind).exists() else tiny.save(folder / kind, kind)

    return of


def differences_of(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, comparison.Difference]:
    """Return the differences from transformers' model in float32."""
    found = published.read(str(folder))
    return conversion.differences(conversion.convert(found, found.row_length), dtype)


def assert_equal(folder: Path) -> None:
    for difference in differences_of(folder).values():
        assert difference.largest < 1e-5 * max(difference.size, 1)
        assert difference.size > 0.5


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_hidden_states_and_scores_are_those_of_transformers(kind: str, saved: Callable[[str], Path]) -> None:
    found = published.read(str(saved(kind)))
    assert found.has_head == (kind not in tiny.HEADLESS)
    differences = conversion.check(conversion.convert(found, found.row_length))
    assert set(differences) == {"hidden states", *(["scores"] if found.has_head else [])}
    for difference in differences.values():
        assert difference.largest < 1e-5 * max(difference.size, 1)
        assert difference.size > 0.5


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {"hidden_act": "relu", "layer_norm_eps": 0.1}),
        ("bert", {"hidden_act": "silu", "num_attention_heads": 4}),
        ("electra generator", {"embedding_size": 16}),
        ("modernbert", {"local_attention": 2}),
        ("modernbert", {"local_attention": 13, "global_attn_every_n_layers": 2, "local_rope_theta": 30.0}),
        ("modernbert", {"local_attention": 500, "global_rope_theta": 100.0}),
        ("modernbert", {"hidden_activation": "relu", "classifier_activation": "relu"}),
        pytest.param(
            "modernbert",
            {"layer_types": ["full_attention"] * 3},
            marks=pytest.mark.skipif(
                (5, 4) <= tuple(map(int, metadata.version("transformers").split(".")[:2])) < (5, 18),
                reason="these versions of transformers refuse layers of one kind",
            ),
        ),
        ("modernbert", {"attention_bias": True, "decoder_bias": False}),
        ("modernbert", {"norm_bias": True, "mlp_bias": True, "attention_bias": True, "classifier_bias": True}),
        ("roberta", {"max_position_embeddings": 40, "hidden_dropout_prob": 0.2}),
    ],
    ids=str,
)
def test_every_option_of_an_architecture_is_exact(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    assert_equal(tiny.save(tmp_path / "model", kind, **settings))


def test_weights_in_several_files_and_rows_without_tokens_are_read(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", "bert", shard_size="8KB", rows=13)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_equal(folder)
    converted = conversion.convert(published.read(str(folder)), 20)
    assert converted.tokenizer.get_vocab_size() == converted.model.output_bias.numel()
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="lacks model-"):
        published.read(str(folder))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {LAYER: "../model/model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match="outside of its folder"):
        published.read(str(folder))


def test_what_transformers_cannot_compute_is_one_line(saved: Callable[[str], Path], tmp_path: Path) -> None:
    def other(_: dict[str, Tensor], config: dict[str, Any]) -> None:
        config.update(pad_token_id=-1, return_dict=False, _attn_implementation="someone/code")  # which is not fetched

    found = published.read(str(changed(saved("bert"), tmp_path / "model", other)))
    with pytest.raises(UserError, match="index out of range"):
        conversion.check(conversion.convert(found, found.row_length))


def test_weights_that_are_no_numbers_reach_no_model_of_transformers(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import BertForMaskedLM

    folder = changed(saved("bert"), tmp_path / "model", lambda tensors, _: tensors[LAYER].fill_(float("nan")))
    with pytest.raises(UserError, match="not finite"):
        hub.read_weights(BertForMaskedLM, folder, hub.read_config(folder))


def test_ids_over_the_vocabulary_and_damaged_files_are_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(saved("bert"), tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"][max(tokenizer["model"]["vocab"])] = 10**6
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="needs 1000001 rows"):
        published.read(str(folder))
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        published.read(str(folder))


@pytest.mark.parametrize("kind", ["bert", "electra generator", "modernbert"])
def test_in_bfloat16_the_error_is_at_most_half_more_than_transformers_own(
    kind: str, saved: Callable[[str], Path]
) -> None:
    found = published.read(str(saved(kind)))
    own = comparison.differences(found, comparison.theirs(found, torch.bfloat16), found.row_length, pack=False)
    for name, difference in differences_of(saved(kind), torch.bfloat16).items():
        assert difference.largest <= 1.5 * own[name].largest


@pytest.mark.parametrize(
    ("kind", "architecture"), [("bert", bert), ("roberta", bert), ("distilbert", bert), ("modernbert", modernbert)]
)
def test_in_then_out_gives_back_every_score(kind: str, architecture: Any, saved: Callable[[str], Path]) -> None:
    import transformers

    found = published.read(str(saved(kind)))
    assert architecture.refusal(found.config) is None
    size = found.their_config.vocab_size
    pad = comparison.pad_of(found)
    config = architecture.their_config(found.config, size, found.max_positions, pad_token_id=pad)
    config.tie_word_embeddings = True
    model_class: Any = transformers.MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    out = model_class(config).eval()
    missing, surplus = out.load_state_dict(architecture.their_tensors(found.tensors, found.config), strict=False)
    assert surplus == []
    assert all("decoder" in name or "position_ids" in name for name in missing)
    rows = comparison.sentence_ids(found, found.max_positions)

    def scores(batch: comparison.Layout) -> comparison.Outputs:
        return {"scores": out(batch.ids_BL, attention_mask=(batch.segments_BL > 0).long()).logits}

    theirs = comparison.theirs(found)
    back = comparison.compare(scores, lambda batch: {"scores": theirs(batch)["scores"]}, rows, pad, pack=False)
    assert back["scores"].largest < 1e-5 * back["scores"].size


def changed(folder: Path, target: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> Path:
    """Copy a model with other tensors or another configuration."""
    shutil.copytree(folder, target)
    tensors, config = load_file(target / WEIGHTS), json.loads((target / "config.json").read_text())
    change(tensors, config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / WEIGHTS, {"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    return target


EMBEDDINGS = "bert.embeddings"
LAYER = "bert.encoder.layer.1.output.dense.weight"
FAULTS: dict[str, tuple[str, Callable[[dict[str, Tensor], dict[str, Any]], Any], str]] = {
    "missing": ("bert", lambda tensors, _: tensors.pop(LAYER), f"lacks tensors: {LAYER}"),
    "surplus": (
        "bert",
        lambda tensors, _: tensors.update({"bert.encoder.layer.3.output.dense.bias": torch.zeros(16)}),
        r"surplus tensors: bert\.encoder\.layer\.3",
    ),
    "wrong shape": ("bert", lambda tensors, _: tensors.update({LAYER: torch.zeros(16, 25)}), r"\[16, 25\] instead of"),
    "types of another shape": (
        "bert",
        lambda tensors, _: tensors.update({f"{EMBEDDINGS}.token_type_embeddings.weight": torch.zeros(0, 16)}),
        r"token_type_embeddings\.weight \[0, 16\] instead of \[2, 16\]",
    ),
    "positions of another shape": (
        "bert",
        lambda tensors, _: tensors.update({f"{EMBEDDINGS}.position_embeddings.weight": torch.tensor(0.0)}),
        r"position_embeddings\.weight \[\] instead of \[66, 16\]",
    ),
    "no floating point": ("bert", lambda tensors, _: tensors.update({LAYER: torch.ones(16, 24).char()}), "not finite"),
    "negative vocabulary": ("bert", lambda _, config: config.update(vocab_size=-1), "vocab_size = -1, .*1 to "),
    "no positions": (
        "modernbert",
        lambda _, config: config.update(max_position_embeddings=0),
        "_embeddings = 0, .*8 to",
    ),
    "no padding": ("roberta", lambda _, config: config.update(pad_token_id=None), "pad_token_id = None"),
    "window": ("modernbert", lambda _, config: config.update(local_attention=0), "impossible sizes: window"),
    "theta": (
        "modernbert",
        lambda _, config: config["rope_parameters"]["full_attention"].update(rope_theta="x"),
        "impossible sizes: theta",
    ),
    "architecture that is no name": ("bert", lambda _, config: config.update(model_type=["bert"]), "we have bert, rob"),
    "not finite": ("bert", lambda tensors, _: tensors[LAYER].fill_(float("nan")), "not finite"),
    "untied": (
        "bert",
        lambda tensors, _: tensors.update({"cls.predictions.decoder.weight": torch.zeros(500, 16)}),
        r"cls\.predictions\.decoder\.weight differs",
    ),
    "relative positions": (
        "bert",
        lambda _, config: config.update(position_embedding_type="relative_key"),
        "position_embedding_type = 'relative_key'",
    ),
    "decoder": ("bert", lambda _, config: config.update(add_cross_attention=True), "add_cross_attention = True"),
    "activation": ("bert", lambda _, config: config.update(hidden_act="gelu_new"), "hidden_act = 'gelu_new'"),
    "head's activation": ("roberta", lambda _, config: config.update(hidden_act="relu"), "activation of its head"),
    "scaled rotary positions": (
        "modernbert",
        lambda _, config: config["rope_parameters"]["full_attention"].update(rope_type="linear", factor=2.0),
        "rope_type = 'linear'",
    ),
    "layers without a pattern": (
        "modernbert",
        lambda _, config: config.update(layer_types=["sliding_attention", "full_attention", "full_attention"]),
        "layer_types",
    ),
    "unknown architecture": (
        "bert",
        lambda _, config: config.update(model_type="albert"),
        "'albert', .*we have bert, rob",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_our_layers_cannot_do_is_refused_by_name(name: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    kind, change, pattern = FAULTS[name]
    with pytest.raises(UserError, match=pattern) as error:
        published.read(str(changed(saved(kind), tmp_path / "model", change)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("has_head", [True, False])
def test_old_names_and_a_trunk_without_its_head_are_read(
    *, has_head: bool, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    def rename(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensor = tensors.pop(name)
            if has_head:
                tensors[old] = tensor
            elif old.startswith("bert."):
                tensors[old.removeprefix("bert.")] = tensor
        config["architectures"] = config["architectures"] if has_head else None

    named = published.read(str(changed(saved("bert"), tmp_path / "old", rename)))
    plain = published.read(str(saved("bert")))
    assert named.has_head == has_head
    assert all(torch.equal(plain.tensors[name], tensor) for name, tensor in named.tensors.items())
    assert {name for name in plain.tensors if has_head or name.startswith("encoder.")} == set(named.tensors)


def test_pickled_weights_alone_are_never_read(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved("bert"), folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=WEIGHTS):
        published.read(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"refused .*pytorch_model\.bin.*MaskedLM.*AutoTokenizer.*weights_only"):
        published.read(str(folder))


def test_token_types_that_differ_and_dropped_heads_are_told(saved: Callable[[str], Path]) -> None:
    remarks = "\n".join(published.read(str(saved("bert pretrained"))).remarks)
    assert "token types other than 0" in remarks
    assert "bert.pooler, cls.seq_relationship" in remarks
    for kind in ("classifier", "roberta classifier", "electra classifier", "modernbert classifier"):
        assert "classifier" in "\n".join(published.read(str(saved(kind))).remarks)
    assert published.read(str(saved("roberta"))).remarks == ()
