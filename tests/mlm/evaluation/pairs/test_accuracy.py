import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from tokenizers import normalizers
from torch import Tensor, nn
from torch.backends.cuda import cudnn_sdp_enabled

from configs import UserError
from mlm import evaluate
from mlm.distributed.world import World
from mlm.evaluation.hidden_tokens import Copy, log_probabilities
from mlm.evaluation.pairs import grammar
from mlm.evaluation.pairs.accuracy import measure_pairs, report
from mlm.evaluation.pairs.likelihood import pseudo_log_likelihoods, read_sentences
from mlm.evaluation.pairs.pair import Pair
from mlm.experiment import pretrain
from mlm.model.attention import SegmentMask
from tests.mlm.evaluation.test_bits_per_byte import ENGLISH, ROW_LENGTH, model_of, tokenizer_of
from tests.mlm.runs import config_in, write_corpus
from tests.mlm.samples import CPU
from tokenizer.special_tokens import SpecialTokens


class Constant(nn.Module):
    """Finds every token equally likely, whatever it sees."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size

    def forward(self, ids_BL: Tensor, segment_mask: SegmentMask, predicted_BM: Tensor) -> Tensor:
        return torch.zeros(predicted_BM.numel(), self.vocabulary_size)


@pytest.mark.parametrize("cls_sep", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_sentences_scores_are_those_of_its_copies_one_by_one(*, cls_sep: bool, threads: int) -> None:
    """Against a plain loop over the tokens of each sentence, which stands alone in its batch."""
    tokenizer = tokenizer_of(330, cls_sep=cls_sep)
    special, model = SpecialTokens.of(tokenizer), model_of(tokenizer.get_vocab_size())
    texts = [*ENGLISH, "A  second\tone", "Tokenizers", " ".join(["long"] * 20)]
    sentences = read_sentences(texts, tokenizer)
    assert any(not start for sentence in sentences for start in sentence.starts), "no word has two tokens"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found_N2 = pseudo_log_likelihoods(model, sentences, special, CPU)
    torch.set_num_threads(before)
    for sentence, text, found in zip(sentences, texts, found_N2.tolist(), strict=True):
        ids = tokenizer.encode(" ".join(text.split())).ids
        places = [place for place, token in enumerate(ids) if token not in (special.cls, special.sep)]
        assert [ids[place] for place in places] == list(sentence.tokens)
        words = list(itertools.accumulate(sentence.starts))
        sums = [0.0, 0.0]
        for place, word in zip(places, words, strict=True):
            later = [p for p, w in zip(places, words, strict=True) if w == word and p > place]
            for score, hidden in enumerate(([place], [place, *later])):
                seen = torch.tensor([[special.mask if p in hidden else token for p, token in enumerate(ids)]])
                mask = SegmentMask.of(torch.ones_like(seen).int(), torch.arange(len(ids))[None], torch.float32)
                with torch.no_grad():
                    scores_V = model(seen, mask, torch.tensor([[place]]))[0]
                sums[score] += scores_V.log_softmax(dim=0)[ids[place]].item()
        assert found == pytest.approx(sums, rel=1e-4)
    assert (found_N2[:, 0] != found_N2[:, 1]).any()


def test_copies_longer_than_a_shared_row_have_one_to_themselves() -> None:
    tokenizer = tokenizer_of(330)
    model, mask_id = model_of(tokenizer.get_vocab_size()), SpecialTokens.of(tokenizer).mask
    ids = list(range(7, 7 + ROW_LENGTH - 2))
    copies = [Copy(ids, 3, 4), Copy(ids[:5], 0, 2), Copy(ids, 100, 101), Copy(ids[:5], 2, 3)]
    together = log_probabilities(model, copies, mask_id, CPU)
    alone = torch.cat([log_probabilities(model, [copy], mask_id, CPU) for copy in copies])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together < 0).all()


@pytest.mark.gpu
def test_copies_on_a_gpu_have_the_scores_of_the_cpu_without_plans_of_cudnn() -> None:
    tokenizer = tokenizer_of(330)
    model, mask_id = model_of(tokenizer.get_vocab_size()), SpecialTokens.of(tokenizer).mask
    copies = [Copy(list(range(7, 7 + length)), 1, 2) for length in range(3, 40) for _ in range(3)]
    expected = log_probabilities(model, copies, mask_id, CPU)
    allowed = list[bool]()
    model.register_forward_hook(lambda *_: allowed.append(cudnn_sdp_enabled()))  # type: ignore[no-untyped-call]
    actual = log_probabilities(model.to("cuda"), copies, mask_id, World(torch.device("cuda", 0), torch.float32))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert set(allowed) == {False}


def test_a_constant_model_is_at_half_and_equal_sentences_count_half() -> None:
    tokenizer = tokenizer_of(330)
    model = Constant(tokenizer.get_vocab_size())
    pairs = [Pair("The text waits.", "The waits text.", "order"), Pair("A text.", "A  text.", "space")]
    found = measure_pairs(model, tokenizer, pairs, ROW_LENGTH, CPU)
    assert found["accuracy"] == found["accuracy_within_words"] == 0.5
    assert found["same_tokens"] == 1
    assert measure_pairs(model, tokenizer, list(grammar.pairs()), ROW_LENGTH, CPU)["accuracy"] == 0.5
    assert "1 pairs have two sentences that are the same to this tokenizer" in report(found)
    trained = measure_pairs(model_of(tokenizer.get_vocab_size()), tokenizer, pairs[1:], ROW_LENGTH, CPU)
    assert trained["accuracy"] == trained["accuracy_within_words"] == 0.5


def test_paradigms_have_equal_weights_and_intervals_narrow_with_their_pairs() -> None:
    """A constant model prefers the sentence with fewer tokens."""
    tokenizer = tokenizer_of(330)
    model = Constant(tokenizer.get_vocab_size())
    short, long = "The text waits.", "The text waits and waits."
    pairs = [
        *[Pair(short, long, "right", "first")] * 30,
        *[Pair(long, short, "wrong", "first")] * 5,
        *[Pair(short, long, "mixed", "second"), Pair(long, short, "mixed", "second")] * 10,
        Pair(short, long, "without a field"),
    ]
    found = measure_pairs(model, tokenizer, pairs, ROW_LENGTH, CPU)
    accuracies = {name: one["accuracy"] for name, one in found["paradigms"].items()}
    assert accuracies == {"right": 1, "wrong": 0, "mixed": 0.5, "without a field": 1}
    assert found["accuracy"] == pytest.approx(2.5 / 4)
    assert {name: one["accuracy"] for name, one in found["fields"].items()} == {"first": 0.5, "second": 0.5}
    assert found["pairs"] == len(pairs)
    below, above = 0.0, 0.0
    for name, right, number in (("right", 30, 30), ("wrong", 0, 5), ("mixed", 10, 20), ("without a field", 1, 1)):
        wilson = stats.binomtest(right, number).proportion_ci(0.95, "wilson")
        one = found["paradigms"][name]
        assert (one["low"], one["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-6)
        below, above = below + (right / number - wilson.low) ** 2, above + (wilson.high - right / number) ** 2
    assert found["low"] == pytest.approx(2.5 / 4 - math.sqrt(below) / 4)
    assert found["high"] == pytest.approx(2.5 / 4 + math.sqrt(above) / 4)
    lines = report(found).splitlines()
    interval = f"62.5% ({found['low']:.1%} to {found['high']:.1%})"
    assert lines[1].split() == ["all", "56", *interval.split(), *interval.split()]
    assert [line.split()[0] for line in lines[2:]] == ["first", "second", "right", "without", "mixed", "wrong"]


def test_both_scores_of_trained_weights_have_intervals_of_their_own() -> None:
    tokenizer = tokenizer_of(330)
    pairs = [Pair(pair.good, pair.bad, "all") for pair in grammar.pairs()[::4]]
    found = measure_pairs(model_of(tokenizer.get_vocab_size()), tokenizer, pairs, ROW_LENGTH, CPU)
    assert found["accuracy"] != found["accuracy_within_words"]
    for score in ("", "_within_words"):
        right = round(found[f"accuracy{score}"] * len(pairs))
        wilson = stats.binomtest(right, len(pairs)).proportion_ci(0.95, "wilson")
        assert (found[f"low{score}"], found[f"high{score}"]) == pytest.approx((wilson.low, wilson.high), abs=1e-6)
        assert f"{found[f'accuracy{score}']:.1%} ({wilson.low:.1%} to {wilson.high:.1%})" in report(found)


def test_pairs_longer_than_a_row_are_counted_and_all_of_them_an_error() -> None:
    tokenizer = tokenizer_of(330)
    model = Constant(tokenizer.get_vocab_size())
    long = Pair("word " * ROW_LENGTH, "text " * ROW_LENGTH, "long")
    found = measure_pairs(model, tokenizer, [long, Pair("A text.", "Text a.", "order")], ROW_LENGTH, CPU)
    assert (found["pairs"], found["too_long"], list(found["paradigms"])) == (1, 1, ["order"])
    assert "1 pairs have a sentence longer than a row" in report(found)
    assert report(found).endswith("no pair fits a row of long")
    with pytest.raises(UserError, match="each of the 1 pairs has a sentence of more than 130 tokens"):
        measure_pairs(model, tokenizer, [long], ROW_LENGTH, CPU)


def test_a_sentence_without_tokens_is_an_error() -> None:
    """The sum over no tokens is 0, higher than any log-likelihood."""
    tokenizer = tokenizer_of(330)
    tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(UserError, match=r"a sentence of the pair 'A text\.', '\\u200b' has no tokens: mend or remove"):
        measure_pairs(Constant(330), tokenizer, [Pair("A text.", "\u200b", "order")], ROW_LENGTH, CPU)


def test_scores_that_are_no_numbers_are_no_accuracy() -> None:
    tokenizer = tokenizer_of(330)
    model = model_of(tokenizer.get_vocab_size())
    model.output_bias.data.fill_(math.nan)
    with pytest.raises(UserError, match="the scores of pairs are not finite"):
        measure_pairs(model, tokenizer, [Pair("A text.", "Text a.", "order")], ROW_LENGTH, CPU)


def test_a_run_is_judged_at_its_end_and_by_the_command_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus.txt")
    (tmp_path / "mine.tsv").write_text("the cat meows\tthe meows cat\tcats\nthe dog barks\tthe barks dog\tdogs\n" * 3)
    monkeypatch.chdir(tmp_path)
    run = pretrain(config_in(tmp_path, "evaluation.pairs=mine.tsv", "evaluation.most_pairs=2", "name=judged"))
    assert run.results is not None
    assert run.results["pairs"]["pairs"] == 4
    judged = run.results["pairs"]
    assert f"minimal pairs           {judged['accuracy']:.1%}" in run.summary
    assert f"within words {judged['accuracy_within_words']:.1%}\n" in run.summary
    assert f"pairs:\n  - {tmp_path / 'mine.tsv'}\n" in (run.path / "config.yaml").read_text()
    evaluate.main([str(run.path), "--pairs", "mine.tsv", "--most", "2", "--json"])
    assert json.loads(capsys.readouterr().out) == {"pairs": run.results["pairs"]}
    evaluate.main([str(run.path), "--pairs", "--plot", "pairs.png"])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["all", "440"]
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "long.tsv").write_text(f"{'word ' * 200}\tword\n")
    for name, message in (("absent", r"no such file: .*absent\.tsv"), ("long", "each of the 1 pairs has a sentence")):
        with pytest.raises(UserError, match=message):
            pretrain(config_in(tmp_path, f"evaluation.pairs={name}.tsv", "name=absent"))
    assert list((tmp_path / "runs").glob("*absent*")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "--by-position"], "two measurements: choose one"),
        (["--most", "3"], "--most limits the pairs of a paradigm: add --pairs"),
        (["--pairs", "--most", "0"], "name a number from 1 on"),
        (
            ["masking.rate=0.3", "--pairs"],
            r"--pairs reads no text and hides tokens by itself: remove masking\.rate=0\.3",
        ),
        (["evaluation.pairs=[]"], r"evaluation\.pairs=\[\] is not read here: name them by --pairs"),
        (["evaluation.baseline_tokens=9"], "is not read here: baselines are those of the run"),
        (["masking.unit=word"], "is not read here, where each unit is measured: remove it, or add --by-position"),
    ],
)
def test_options_that_do_not_fit_together_are_told(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate.parse(words)
