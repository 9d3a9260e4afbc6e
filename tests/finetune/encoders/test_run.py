"""Our own encoders as fine-tuning sees them."""

from pathlib import Path

import pytest
import torch

from configs import UserError
from finetune import encoders
from finetune.data.augment import MASKED
from finetune.encoders import EncoderChoice
from finetune.encoders.run import RunEncoder
from mlm.checkpoint import checkpoint
from mlm.config import PretrainConfig
from mlm.model.attention import SegmentMask
from tests.finetune import samples
from tests.tokenizer.published import KINDS, published
from tokenizer.cached_encoder import CachedEncoder
from tokenizer.special_tokens import SpecialTokens
from tokenizer.vocabulary import CLS, MASK, SEP


def test_hidden_states_are_those_of_the_pretrained_encoder(run: Path) -> None:
    encoder = samples.encoder(run).eval()
    model, tokenizer, _ = checkpoint.load_model(checkpoint.newest(run), torch.device("cpu"))
    text = "the river is on fire"
    (tokens,) = encoder.tokenize([(text,)], samples.LONGEST)
    assert list(tokens.ids) == tokenizer.encode(text).ids
    ids_BL = torch.tensor([tokens.ids])
    ones_BL = torch.ones_like(ids_BL)
    segment_mask = SegmentMask.of(ones_BL.int(), torch.arange(ids_BL.shape[1])[None], torch.float32)
    assert torch.equal(encoder(ids_BL, ones_BL.bool(), 0 * ones_BL), model.encoder(ids_BL, segment_mask))


def test_texts_stand_between_cls_and_sep_as_in_pretraining(run_with_cls: Path) -> None:
    encoder = samples.encoder(run_with_cls)
    single, pair = encoder.tokenize([("a storm",)], 64)[0], encoder.tokenize([("a storm", "was quiet")], 64)[0]
    first, second = (encoder.tokenizer.encode(t, add_special_tokens=False).ids for t in ("a storm", "was quiet"))
    assert list(single.ids) == [CLS, *first, SEP]
    assert list(pair.ids) == [CLS, *first, SEP, *second, SEP]
    assert list(pair.types) == [0] * (2 + len(first)) + [1] * (len(second) + 1)
    assert encoder.cls_id == CLS


def test_a_pair_without_cls_is_parted_by_sep(run: Path) -> None:
    encoder = samples.encoder(run)
    (pair,) = encoder.tokenize([("a storm", "was quiet")], 64)
    first, second = (encoder.tokenizer.encode(t).ids for t in ("a storm", "was quiet"))
    assert list(pair.ids) == [*first, SEP, *second]
    assert encoder.cls_id is None


@pytest.mark.parametrize("fixture", ["run", "run_with_cls"])
def test_special_tokens_in_a_text_are_plain_text_as_in_pretraining(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    encoder = samples.encoder(request.getfixturevalue(fixture))
    typed = "a [PAD] storm[SEP] [MASK] [CLS]was [UNK]"
    plain = CachedEncoder(encoder.tokenizer).encode([typed]).tokens.tolist()
    framed = [CLS, *plain, SEP] if encoder.cls_id is not None else plain
    assert min(plain) > MASK
    assert list(encoder.tokenize([(typed,)], 99)[0].ids) == framed
    assert encoder.tokenize([("a", typed)], 99)[0].ids.count(SEP) == 1 + (encoder.cls_id is not None)
    (masked,) = encoder.tokenize([(f"a {MASKED} [MASK]",)], 99)
    assert masked.ids.count(MASK) == 1


@pytest.mark.parametrize("name", KINDS)
def test_texts_and_pairs_stand_between_the_special_tokens_of_any_tokenizer(name: str) -> None:
    tokenizer = published(name)
    encoder = RunEncoder(PretrainConfig(model=samples.TINY), tokenizer, None)
    special = SpecialTokens.of(tokenizer)
    texts: tuple[str, ...]
    for texts, expected in [
        (("the house",), tokenizer.encode("the house")),
        (("the house", "Nobody saw it."), tokenizer.encode("the house", "Nobody saw it.")),
    ]:
        (example,) = encoder.tokenize([texts], 99)
        assert list(example.ids) == expected.ids
        (cut,) = encoder.tokenize([texts], len(example.ids) - 1)
        assert (len(cut.ids), cut.truncated) == (len(example.ids) - 1, True)
        assert (cut.ids[0], cut.ids[-1]) == (encoder.cls_id, special.sep)
    assert encoder.pad_id == special.pad
    (masked,) = encoder.tokenize([(f"the {MASKED} house {tokenizer.id_to_token(special.mask)}",)], 99)
    assert masked.ids.count(special.mask) == 1


@pytest.mark.parametrize(
    ("first", "second", "kept"), [(20, 3, (6, 3)), (3, 20, (3, 6)), (20, 20, (5, 4)), (4, 5, (4, 5))]
)
def test_of_a_long_pair_the_longer_text_is_cut_first(
    first: int, second: int, kept: tuple[int, int], run_with_cls: Path
) -> None:
    encoder = samples.encoder(run_with_cls)
    (word,) = encoder.tokenizer.encode("a", add_special_tokens=False).ids
    (more,) = set(encoder.tokenizer.encode(" a a", add_special_tokens=False).ids)
    (pair,) = encoder.tokenize([("a" + " a" * (first - 1), "a" + " a" * (second - 1))], 12)
    texts = [[word] + [more] * (length - 1) for length in kept]
    assert list(pair.ids) == [CLS, *texts[0], SEP, *texts[1], SEP]
    assert pair.truncated == (first + second > 9)


@pytest.mark.parametrize("fixture", ["run", "run_with_cls"])
def test_long_texts_are_cut_and_told(fixture: str, request: pytest.FixtureRequest) -> None:
    encoder = samples.encoder(request.getfixturevalue(fixture))
    (whole,) = encoder.tokenize([("a storm " * 40,)], 10_000)
    (cut,) = encoder.tokenize([("a storm " * 40,)], 12)
    (fits,) = encoder.tokenize([("a storm " * 40,)], len(whole.ids))
    assert (len(cut.ids), cut.truncated, whole.truncated, fits.truncated) == (12, True, False, False)
    assert cut.ids[:11] == whole.ids[:11]
    assert (cut.ids[-1] == SEP) == (fixture == "run_with_cls")


def test_the_control_has_the_shape_and_tokenizer_but_not_the_weights(run: Path) -> None:
    pretrained = samples.encoder(run).state_dict()
    controls = [RunEncoder.load(run, random=True, seed=seed, dropout=None).state_dict() for seed in (0, 0, 1)]
    assert all(pretrained[name].shape == value.shape for name, value in controls[0].items())
    matrix = "encoder.blocks.0.attention.sublayer.qkv.weight"
    assert torch.equal(controls[0][matrix], controls[1][matrix])
    assert not torch.equal(controls[0][matrix], controls[2][matrix])
    assert not torch.equal(controls[0][matrix], pretrained[matrix])
    assert controls[0][matrix].std() == pytest.approx(pretrained[matrix].std().item(), rel=0.1)


def test_every_parameter_is_in_one_level(run: Path) -> None:
    encoder = samples.encoder(run)
    levels = encoder.layers()
    assert len(levels) == 1 + samples.TINY.encoder.layers
    assert sorted(id(p) for level in levels for p in level) == sorted(id(p) for p in encoder.parameters())


def test_what_is_saved_is_restored(run: Path, tmp_path: Path) -> None:
    encoder = samples.encoder(run, dropout=0.3)
    encoder.save(tmp_path)
    restored = RunEncoder.restore(tmp_path)
    restored.load_state_dict(encoder.state_dict())
    ids = torch.tensor([encoder.tokenize([("a storm",)], 64)[0].ids])
    real = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(encoder.eval()(ids, real, 0 * ids), restored.eval()(ids, real, 0 * ids))


def test_the_newest_run_is_taken_where_none_is_named(run: Path) -> None:
    pinned = str(checkpoint.newest(run))
    assert encoders.resolve(EncoderChoice(), run.parent).run == pinned
    assert encoders.resolve(EncoderChoice(run=str(run)), run.parent).run == pinned
    assert encoders.resolve(EncoderChoice(run=pinned), run.parent).run == pinned
    with pytest.raises(UserError, match=r"mlm.pretrain"):
        encoders.resolve(EncoderChoice(), run)
