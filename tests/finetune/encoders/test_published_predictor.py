from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from configs import UserError
from finetune.data.augment import MASKED
from finetune.encoders.published import load_published_predictor
from mlm.distributed.world import World
from tests.finetune.tiny_published import KINDS, PAIRS, load, save

WORLD = World(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "modernbert", "distilbert", "electra", "deberta"])
@torch.no_grad()
def test_a_predictor_scores_the_masks_as_transformers_does(tmp_path: Path, name: str) -> None:
    prefix = KINDS[name].model.removesuffix("Model")
    save(tmp_path, name, f"{prefix}ForMaskedLM")
    predictor = load_published_predictor(str(tmp_path), None, WORLD)
    texts = [f"the {MASKED} burns in the {MASKED}", "a dog runs", f"{MASKED} runs"]
    own: Any = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = [text.replace(MASKED, KINDS[name].marks.mask) for text in texts]
    batch = words(plain, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    logits_MV = own(**batch).logits[batch["input_ids"] == words.mask_token_id]
    scores = predictor.predict(texts)
    assert [len(score_MV) for score_MV in scores] == [2, 0, 1]
    torch.testing.assert_close(torch.cat(scores), logits_MV, atol=1e-5, rtol=1e-5)
    assert predictor.tokenize(PAIRS, 9) == load(tmp_path).tokenize(PAIRS, 9)
    assert [word for word in predictor.words if word is not None] == words.convert_ids_to_tokens(
        list(range(5, len(words)))
    )


def test_a_prediction_head_is_never_a_random_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bert.*BertForMaskedLM"):
        load_published_predictor(str(save(tmp_path / "bert", "bert")), None, WORLD)
    with pytest.raises(UserError, match="predicts no hidden words"):
        load_published_predictor(str(save(tmp_path / "xlnet", "xlnet")), None, WORLD)
