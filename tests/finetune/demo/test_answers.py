"""A model's answers for the page are those of the commands and libraries that it is made of."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import UserError
from finetune.data.labelled import Labelled
from finetune.demo import answers, words
from finetune.demo.models import Classifier, LanguageModel, open_model
from finetune.encoders.published import PublishedEncoder
from finetune.interop.export import export
from finetune.saved_model import load
from mlm.checkpoint import checkpoint
from mlm.evaluation import fill_blanks
from tests.finetune import samples, tiny_published
from tests.finetune.demo.conftest import classifier_run
from tests.finetune.interop import samples as exported_samples

KINDS = {"bert": "Bert", "roberta": "Roberta"}
SENTENCE = "the old bridge was flooded, last night: my neighbour's street!"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the list.", ["Return", "the", "list", "."]),
        ("a [MASK] of\n[MASK]s", ["a", "[MASK]", "of", "[MASK]", "s"]),
        (
            "don't well-known U.S. @some_one #ForestFire",
            ["don't", "well-known", "U.S", ".", "@some_one", "#ForestFire"],
        ),
        ("see http://t.co/a?b=1, now", ["see", "http://t.co/a?b=1,", "now"]),
        ("http://x.y/[MASK] now http://[MASK]", ["http://x.y/", "[MASK]", "now", "http", ":", "/", "/", "[MASK]"]),
        ("naïve cafe\u0301 数据 👍🏽", ["naïve", "cafe\u0301", "数据", "👍", "🏽"]),
    ],
)
def test_every_letter_and_sign_belongs_to_a_word(text: str, expected: list[str]) -> None:
    found = words.split(text)
    assert [word.text for word in found] == expected
    assert "".join(word.text for word in found) == "".join(text.split())
    assert all(text[word.start : word.end] == word.text for word in found)


def test_attention_between_words_sums_over_keys_and_averages_over_queries() -> None:
    weights_HLL = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    units = [0, 1, 1, 1, 2]
    found_HUU = words.between_units(weights_HLL, units)
    for head, start, end in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)).tolist():
        rows = [
            sum(weights_HLL[head, query, key].item() for key in range(5) if units[key] == end)
            for query in range(5)
            if units[query] == start
        ]
        assert found_HUU[head, start, end].item() == pytest.approx(sum(rows) / len(rows), abs=1e-6)
    torch.testing.assert_close(found_HUU.sum(dim=-1), torch.ones(2, 3))


@pytest.mark.parametrize("framed", [False, True])
def test_hidden_words_are_read_and_guessed_as_by_fill_mask(framed: bool, run: Path, run_with_cls: Path) -> None:
    path = run_with_cls if framed else run
    model = open_model(path, samples.CPU)
    assert isinstance(model, LanguageModel)
    network, tokenizer, recipe = checkpoint.load_model(checkpoint.resolve(path), torch.device("cpu"))
    batch = fill_blanks.read_blanks(
        "the old [MASK] was flooded[MASK] last night: [MASK] [MASK] street!", tokenizer, recipe.data.row_length
    )
    hidden = [2, 5, 9, 10]
    assert [word.text for word in words.split(SENTENCE)][8:11] == [":", "my", "neighbour's"]
    assert model.read([SENTENCE], hidden).ids == tuple(batch.ids_BL[0].tolist())
    expected = fill_blanks.guess(network, batch, tokenizer, samples.CPU, answers.TOP)
    found = answers.fill_mask(model, SENTENCE, hidden)["words"]
    assert [index for index, word in enumerate(found) if word["hidden"]] == hidden
    for index, guesses in zip(hidden, expected, strict=True):
        names = [guess.token.strip() or repr(guess.token) for guess in guesses]
        assert [guess["name"] for guess in found[index]["guesses"]] == names
        chances = [guess.probability for guess in guesses]
        assert [guess["probability"] for guess in found[index]["guesses"]] == pytest.approx(chances, abs=1e-4)
    typed = answers.fill_mask(model, "the old [MASK] was flooded, last night:[MASK]", [5, 99, -1])
    assert [word["typed"] for word in typed["words"]] == [False, False, True, *[False] * 6, True]
    assert [word["hidden"] for word in typed["words"]] == [False, False, True, False, False, True, *[False] * 3, True]


def test_attention_has_a_line_for_each_word_and_special_token(language_model: LanguageModel) -> None:
    found = answers.fill_mask(language_model, SENTENCE, [2])
    shown = [word["text"] for word in found["words"]]
    assert list(found["attention"]["labels"]) == ["[CLS]", *shown[:2], "[MASK]", *shown[3:], "[SEP]"]
    weights = torch.tensor(found["attention"]["weights"])
    assert weights.shape == (2, 2, len(shown) + 2, len(shown) + 2)  # layers, heads, from, to
    assert (weights.sum(dim=-1) - 100).abs().max() <= len(shown)  # each is rounded


@pytest.mark.parametrize(
    ("text", "said"), [("", "no text"), (" \n ", "no text"), ("ab " * 200, "599 characters"), ("a?!" * 40, "tokens")]
)
def test_an_empty_or_long_text_is_refused_in_one_line(text: str, said: str, language_model: LanguageModel) -> None:
    with pytest.raises(UserError, match=said):
        answers.fill_mask(language_model, text, [])


def test_a_word_contributes_what_its_absence_takes_from_the_class(classifier: Classifier) -> None:
    text = "my neighbour  has been evacuated!"
    found = answers.classify(classifier, [text], samples.CPU)
    best = found["classes"][0]["name"]

    def chance(text: str) -> float:
        (prediction,) = classifier.classify([{"text": text}], samples.CPU)
        return prediction.probabilities[classifier.class_names.index(best)]

    assert found["classes"][0]["probability"] == pytest.approx(chance(text), abs=1e-4)
    assert sum(shown["probability"] for shown in found["classes"]) == pytest.approx(1, abs=1e-3)
    left = ["neighbour has been evacuated!", "my has been evacuated!", "my neighbour been evacuated!"]
    left += ["my neighbour has evacuated!", "my neighbour has been !", "my neighbour has been evacuated"]
    assert [word["text"] for word in found["words"]] == ["my", "neighbour", "has", "been", "evacuated", "!"]
    assert [word["space"] for word in found["words"]] == [False, True, True, True, True, False]
    for word, without in zip(found["words"], left, strict=True):
        assert word["contribution"] == pytest.approx(chance(text) - chance(without), abs=2e-4)
    (only,) = answers.classify(classifier, ["evacuated"], samples.CPU)["words"]
    assert only["contribution"] is None


def test_a_pair_takes_two_texts(tmp_path: Path, run: Path) -> None:
    data = Labelled(text="first", pair="second", label="target")
    model = open_model(classifier_run(tmp_path / "pairs", run, data), samples.CPU)
    assert not isinstance(model, LanguageModel)
    found = answers.classify(model, ["a storm", "her garden sleeps"], samples.CPU)
    assert [(word["part"], word["text"]) for word in found["words"]] == [
        *((0, "a"), (0, "storm")),
        *((1, "her"), (1, "garden"), (1, "sleeps")),
    ]
    assert list(found["attention"]["labels"]) == ["a", "storm", "[SEP]", "her", "garden", "sleeps"]
    encoder = load(tmp_path / "pairs", torch.device("cpu")).classifier.encoder
    (tokens,) = encoder.tokenize([("a storm", "her garden sleeps")], 64)
    assert model.read(["a storm", "her garden sleeps"]).ids == tokens.ids
    with pytest.raises(UserError, match="first, second"):
        answers.classify(model, ["a storm"], samples.CPU)


@pytest.mark.parametrize(
    ("kind", "model", "mask"), [("bert", "BertForMaskedLM", "[MASK]"), ("roberta", "RobertaForMaskedLM", "<mask>")]
)
def test_an_exported_language_model_answers_as_transformers_does(
    kind: str, model: str, mask: str, tmp_path: Path
) -> None:
    import transformers

    folder = tiny_published.save(tmp_path, kind, model)
    opened = open_model(folder, samples.CPU)
    assert isinstance(opened, LanguageModel)
    found = answers.fill_mask(opened, f"the fire {mask} in the old forest", [5])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plain: Any = transformers.AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    given = tokenizer(f"the fire {mask} in the {mask} forest", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = plain(**given, output_attentions=True)
    places = (given.input_ids[0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
    for index, place in zip([2, 5], places, strict=True):
        scores_V = expected.logits[0, place].clone()
        scores_V[tokenizer.all_special_ids] = float("-inf")
        best = scores_V.softmax(dim=-1).topk(answers.TOP)
        guesses = found["words"][index]["guesses"]
        assert [guess["name"] for guess in guesses] == tokenizer.batch_decode(best.indices[:, None])
        assert [guess["probability"] for guess in guesses] == pytest.approx(best.values.tolist(), abs=1e-4)
    weights = torch.cat(expected.attentions)  # every word is one token
    torch.testing.assert_close(
        torch.tensor(found["attention"]["weights"]), (100 * weights).round().long(), atol=1, rtol=0
    )


def test_an_exported_classifier_answers_as_transformers_does(tmp_path: Path) -> None:
    import transformers

    folder = tiny_published.save(tmp_path, "bert", "BertForSequenceClassification")
    opened = open_model(folder, samples.CPU)
    assert not isinstance(opened, LanguageModel)
    texts = ["the fire burns", "", "a dog runs over the old house in the city"]
    found = opened.classify([{"text": text} for text in texts], samples.CPU)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plain: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert opened.class_names == ("LABEL_0", "LABEL_1")
    assert found[1].probabilities == ()
    for text, prediction in zip(texts, found, strict=True):
        if text:
            with torch.no_grad():
                expected = plain(**tokenizer(text, return_tensors="pt")).logits[0].softmax(dim=-1)
            assert prediction.probabilities == pytest.approx(expected.tolist(), abs=1e-5)
    attention = answers.classify(opened, ["the fire burns"], samples.CPU)["attention"]
    assert attention["labels"] == ("[CLS]", "the", "fire", "burns", "[SEP]")


def test_attention_of_a_published_encoder_tells_the_texts_of_a_pair_apart(tmp_path: Path) -> None:
    from finetune.demo import exported

    encoder: PublishedEncoder = tiny_published.load(tiny_published.save(tmp_path, "bert"))
    exported.written_out(encoder)
    read = exported.read(encoder, tiny_published.PAIRS[0], ())
    (tokens,) = encoder.tokenize([tiny_published.PAIRS[0]], 24)
    assert (read.ids, read.types) == (tokens.ids, tokens.types)
    found = exported.weights(encoder, read)
    others = exported.weights(encoder, replace(read, types=(0,) * len(tokens.ids)))
    assert found[0].shape == (2, len(tokens.ids), len(tokens.ids))
    assert (found[0] - others[0]).abs().max() > 0.01


@pytest.mark.parametrize("pair", [None, "second"])
def test_an_exported_classifier_prepares_texts_as_the_run_did(pair: str | None, tmp_path: Path) -> None:
    cleaning = {"urls": "replace", "lower_case": True, "prefix": ("keyword",)}
    exported_samples.save(
        tmp_path / "run",
        exported_samples.encoder(tmp_path, "bert"),
        {"kind": "linear", "pooling": "cls"},
        cleaning=cleaning,
        pair=pair,
    )
    export(tmp_path / "run", tmp_path / "out", ["transformers"])
    ours, theirs = (open_model(tmp_path / name, samples.CPU) for name in ("run", "out"))
    assert not isinstance(ours, LanguageModel)
    assert not isinstance(theirs, LanguageModel)
    assert theirs.reader.columns == ours.reader.columns
    row = {"text": "A DOG runs [SEP] http://x.y/z", "second": "The old house", "keyword": "forest%20fire"}
    for given in (row, {**row, "text": "the man [MASK] " * 30}, {**row, "text": " "}):
        (expected,), (found,) = (model.classify([given], samples.CPU) for model in (ours, theirs))
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert found.truncated == expected.truncated
    texts = [row["text"], *([row["second"]] if pair else [])]
    expected_answer, answer = (answers.classify(model, texts, samples.CPU) for model in (ours, theirs))
    assert answer["attention"] == expected_answer["attention"]
    assert [word["contribution"] for word in answer["words"]] == pytest.approx(
        [word["contribution"] for word in expected_answer["words"]], abs=2e-4
    )
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    for change, said in (({"cleaning": {"urls": "eat"}}, "damaged"), (None, "finetune.export")):
        (tmp_path / "out" / "config.json").write_text(json.dumps({**told, "text_preparation_settings": change}))
        with pytest.raises(UserError, match=said) as caught:
            open_model(tmp_path / "out", samples.CPU)
        assert str(tmp_path / "out" / "config.json") in str(caught.value)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_special_tokens_that_are_typed_are_plain_text(kind: str, tmp_path: Path) -> None:
    opened = open_model(tiny_published.save(tmp_path, kind, f"{KINDS[kind]}ForMaskedLM"), samples.CPU)
    assert isinstance(opened, LanguageModel)
    marks = tiny_published.KINDS[kind].marks
    read = opened.read([f"the {marks.sep} fire {marks.cls} in [MASK]"], [])
    names = tiny_published.tokenizer(marks).convert_ids_to_tokens(list(read.ids))
    assert (names.count(marks.sep), names.count(marks.cls), names.count(marks.mask)) == (1, 1, 0)
    found = answers.fill_mask(opened, f"the {marks.sep} fire http://a{marks.mask} in the \ufdd0\ufdd1 city", [0])
    assert sum("guesses" in word for word in found["words"]) == 2


@pytest.mark.parametrize("settings", [{"problem_type": "multi_label_classification"}, {"id2label": {"0": "score"}}])
def test_a_classifier_of_other_than_one_class_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_published.save(tmp_path, "bert", "BertForSequenceClassification")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(UserError, match="one class of several") as caught:
        open_model(folder, samples.CPU)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "no tokenizer"),
        ('{"model_type": "bert", "architectures": ["BertModel"]}', "BertModel"),
        ('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}', "GPT2"),
        ('{"model_type": "bert", "architectures": 3}', "architecture"),
        ("{", "config.json"),
        (None, "no model"),
    ],
)
def test_a_folder_that_is_no_model_is_named(config: str | None, said: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=said) as caught:
        open_model(tmp_path, samples.CPU)
    assert str(tmp_path) in str(caught.value)
