"""The results of a finished run: held-out scores beside those of baselines, and a summary."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs import UserError
from mlm.config import PretrainConfig
from mlm.data.batches import Batch
from mlm.data.corpus import Corpus, corpus_at
from mlm.distributed.world import World
from mlm.evaluation.bits_per_byte import (
    COUNTED_WORDS,
    SENTENCES_READ,
    bits_per_byte,
    check_window,
    choose_words,
    sentences_of,
    token_count_bits_per_byte,
)
from mlm.evaluation.ngram_baselines import Bigram, Unigram, measure_baseline
from mlm.evaluation.pairs.accuracy import measure_pairs
from mlm.evaluation.pairs.reading import read_pairs
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives.masked import MaskedLMTask

logger = logging.getLogger(__name__)


def measure(config: PretrainConfig, corpus: Corpus, task: MaskedLMTask, model: MaskedLanguageModel) -> dict[str, Any]:
    """Return the model's and the baselines' scores on the held-out text, and what cleaning dropped, by reason.

    If minimal pairs are asked for, `pairs` has the accuracy on them; null, with a warning, if they cannot be measured.
    Beside these are the model's scores on each corpus of a mixture, `corpora`, where its parts have names.
    """
    measured = {
        "heldout": _measure_heldout(config, corpus, task, model),
        "baselines": measure_baselines(config, corpus, task.heldout),
        "dropped": dict(corpus.manifest.dropped),
    }
    if config.evaluation.pairs is not None:
        try:  # files may have gone, and the hub may not answer: no reason to lose all other results
            pairs = read_pairs(config.evaluation.pairs, config.evaluation.most_pairs)
            measured["pairs"] = measure_pairs(model, corpus.tokenizer, pairs, config.data.row_length, task.world)
        except (UserError, OSError) as error:
            measured["pairs"] = None
            logger.warning("minimal pairs were not measured: %s", error)
    if len(corpus.config) == 1:
        (only,) = corpus.config
        return measured if only.name is None else {**measured, "corpora": {only.name: measured["heldout"]}}
    corpora: dict[str, dict[str, float | None]] = {}
    for number, part in enumerate(corpus.config):
        batches = [batch.chosen(batch.corpora_B == number) for batch in task.heldout if batch.corpora_B is not None]
        rows = [batch for batch in batches if batch.targets]
        own = replace(task, heldout=rows, corpora=())
        corpora[part.label] = _measure_heldout(
            config, corpus_at([part], config.data.row_length, corpus.cache), own, model
        )
    return {**measured, "corpora": corpora}


def _measure_heldout(
    config: PretrainConfig, corpus: Corpus, task: MaskedLMTask, model: MaskedLanguageModel
) -> dict[str, float | None]:
    bits = measure_bits_per_byte(config, corpus, model, task.world) if config.evaluation.words else {}
    return {**task.evaluate(model), **bits}


def measure_baselines(
    config: PretrainConfig, corpus: Corpus, heldout: Sequence[Batch]
) -> Mapping[str, Mapping[str, float]]:
    """Return loss in nats and accuracy of the unigram and bigram baselines on held-out batches."""
    size, special = corpus.manifest.vocabulary_size, corpus.train.special
    tokens, segments = corpus.train.sample(config.evaluation.baseline_tokens)
    unigram = Unigram(tokens, size)
    bigram = Bigram(tokens, segments, unigram, size, special.mask)
    baselines: dict[str, Unigram | Bigram] = {"unigram": unigram, "bigram": bigram}
    return {name: measure_baseline(baseline, heldout, special) for name, baseline in baselines.items()}


def measure_bits_per_byte(
    config: PretrainConfig, corpus: Corpus, model: MaskedLanguageModel, world: World
) -> dict[str, float | None]:
    """Return the bits per byte of hidden words, given the numbers of their tokens and in all; None without words.

    The bits per sentence are the latter by the mean bytes of a held-out sentence's words, without their spaces, which
    are not hidden either: so translations compare, as far as hidden words stand for whole sentences.
    """
    settings, tokenizer = config.evaluation, corpus.tokenizer
    check_window(tokenizer, settings.window_bytes, config.data.row_length)
    heldout = [one.heldout for one in corpus.shards]
    words = choose_words(sentences_of(heldout, tokenizer), settings.words, settings.window_bytes)
    if not words:
        return dict.fromkeys(("bits_per_byte", "complete_bits_per_byte", "bits_per_sentence"))
    training = sentences_of([one.train for one in corpus.shards], tokenizer, COUNTED_WORDS)
    counted = choose_words(training, COUNTED_WORDS, settings.window_bytes)
    given = bits_per_byte(model, tokenizer, words, config.data.row_length, world)
    count = token_count_bits_per_byte(tokenizer, words, counted, settings.window_bytes)
    sentences = sentences_of(heldout, tokenizer, SENTENCES_READ)
    bytes_per_sentence = statistics.fmean(len("".join(sentence.split()).encode()) for sentence in sentences)
    return {
        "bits_per_byte": given,
        "complete_bits_per_byte": given + count,
        "bits_per_sentence": (given + count) * bytes_per_sentence,
    }


def bits_line(bits: Mapping[str, float | None]) -> str:
    """Return the bits per byte as text, or the reason why there are none."""
    if (given := bits["bits_per_byte"]) is None:
        return "not measured: no word of the held-out text has a letter or digit"
    complete = bits.get("complete_bits_per_byte")
    told = "" if complete is None else f", or {complete:.3f} with the numbers of the words' tokens"
    return f"{given:.3f}{told}"


def shown(measure: float | None, form: str) -> str:
    """Return a measure in the format `form`; a dash for one that could not be taken."""
    return "-" if measure is None else format(measure, form)


def summary(path: Path, results: Mapping[str, Any], filled: str) -> str:
    """Return the end of a run's output: scores, costs, filled-in sentences, and the next command to try."""
    heldout, baselines = results["heldout"], results["baselines"]
    table = {
        "this encoder": heldout,
        **({"initial weights": results["heldout_at_start"]} if "heldout_at_start" in results else {}),
        "bigram (Kneser-Ney)": baselines["bigram"],
        "unigram": baselines["unigram"],
    }
    lines = [f"{'held-out':24}{'loss (nats)':>12}{'accuracy':>10}"]
    for name, scores in table.items():
        lines.append(f"{name:24}{shown(scores['loss'], '.3f'):>12}{shown(scores['accuracy'], '.1%'):>10}")
    for name, read in results.get("corpora", {}).items():
        told = f"  read {read['epochs']:.2f} times, {read['tokens']:,.0f} tokens" if "epochs" in read else ""
        lines.append(f"{f'  of {name}':24}{shown(read['loss'], '.3f'):>12}{shown(read['accuracy'], '.1%'):>10}{told}")
    if "bits_per_byte" in heldout:
        lines.append(f"{'bits per hidden byte':24}{bits_line(heldout):>12}")
    if pairs := results.get("pairs"):
        told = f"{pairs['accuracy']:.1%} ({pairs['low']:.1%} to {pairs['high']:.1%}) of {pairs['pairs']:,}"
        left = f"; {pairs['too_long']:,} longer than a row left out" if pairs["too_long"] else ""
        lines.append(f"{'minimal pairs':24}{told}, within words {pairs['accuracy_within_words']:.1%}{left}")
    blanks = "\nHeld-out sentences with their blanks filled in; [guess], or [guess|truth] where wrong:"
    speed = shown(results["tokens_per_second"], ",.0f")
    return "\n".join(
        [
            *lines,
            f"\n{results['steps']:,} steps, {results['tokens']:,} tokens, {speed} tokens/s",
            f"{shown(results['words'], ',')} words shown, {results['epochs']:.2f} epochs",
            *([blanks, *(f"  {sentence}" for sentence in filled.split("\n\n"))] if filled else []),
            f"\nlearning curve: {path / 'curves.png'}    all results: {path / 'results.json'}",
            'next: python -m mlm.fill_mask "Return the [MASK] of the list."',
        ]
    )
