from pathlib import Path

import pytest
from tokenizers import Tokenizer

from finetune.interop import texts
from tests.finetune.interop import samples


@pytest.mark.parametrize("kind", ["like_none", "like_bert"])
def test_the_tokenizer_beside_a_model_gives_the_tokens_of_the_run(kind: str, tmp_path: Path) -> None:
    encoder = samples.encoder(tmp_path, kind)
    model = samples.save(tmp_path / "run", encoder, {"kind": "cnn"}, pair="other")
    (tmp_path / "out").mkdir()
    texts.write_tokenizer(model, tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    pairs = [("the river", "a storm [SEP]"), ("our street " * 40, "is on fire"), ("her garden", "sleeps " * 90)]
    singles = [("[MASK] river",), ("the old bridge " * 50,)]
    for given in (pairs, singles):
        expected = encoder.tokenize(given, model.longest)
        found = tokenizer.encode_batch([text if len(text) > 1 else text[0] for text in given])
        for one, other in zip(found, expected, strict=True):
            real = [token for token, is_real in zip(one.ids, one.attention_mask, strict=True) if is_real]
            assert tuple(real) == other.ids
        assert len({len(one.ids) for one in found}) == 1  # padded
    assert any(example.truncated for example in encoder.tokenize(pairs, model.longest))
