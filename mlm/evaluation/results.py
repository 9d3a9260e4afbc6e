"""The results of a finished run: held-out scores beside those of baselines, and a summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlm.config import PretrainConfig
from mlm.data.batches import Batch
from mlm.data.corpus import Corpus
from mlm.distributed.world import World
from mlm.evaluation.bits_per_byte import bits_per_byte, choose_words, heldout_sentences
from mlm.evaluation.ngram_baselines import Bigram, Unigram, measure_baseline, sample_tokens
from mlm.model.heads import MaskedLanguageModel
from mlm.objectives.masked import MaskedLMTask


def measure(config: PretrainConfig, corpus: Corpus, task: MaskedLMTask, model: MaskedLanguageModel) -> dict[str, Any]:
    """Return the model's and the baselines' scores on the held-out text, and what cleaning dropped, by reason."""
    heldout: dict[str, float | None] = dict(task.evaluate(model))
    if config.evaluation.words:
        heldout["bits_per_byte"] = measure_bits_per_byte(config, corpus, model, task.world)
    baselines = measure_baselines(config, corpus, task.heldout)
    return {"heldout": heldout, "baselines": baselines, "dropped": dict(corpus.manifest.dropped)}


def measure_baselines(
    config: PretrainConfig, corpus: Corpus, heldout: Sequence[Batch]
) -> Mapping[str, Mapping[str, float]]:
    """Return loss in nats and accuracy of the unigram and bigram baselines on held-out batches."""
    size, special = corpus.manifest.vocabulary_size, corpus.train.special
    tokens, segments = sample_tokens(corpus.train, config.evaluation.baseline_tokens)
    unigram = Unigram(tokens, size)
    bigram = Bigram(tokens, segments, unigram, size, special.mask)
    baselines: dict[str, Unigram | Bigram] = {"unigram": unigram, "bigram": bigram}
    return {name: measure_baseline(baseline, heldout, special) for name, baseline in baselines.items()}


def measure_bits_per_byte(
    config: PretrainConfig, corpus: Corpus, model: MaskedLanguageModel, world: World
) -> float | None:
    """Return the bits per byte of hidden words; None if the held-out text has none."""
    sentences = heldout_sentences([one.heldout for one in corpus.shards], corpus.tokenizer)
    words = choose_words(sentences, config.evaluation.words, config.evaluation.window_bytes)
    return None if not words else bits_per_byte(model, corpus.tokenizer, words, config.data.row_length, world)


def bits_line(bits: float | None) -> str:
    """Return the bits per byte as text, or the reason why there are none."""
    return "not measured: no word of the held-out text has a letter or digit" if bits is None else f"{bits:.3f}"


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
        told = f"read {read['epochs']:.2f} times, {read['tokens']:,.0f} tokens"
        lines.append(f"{f'  of {name}':24}{shown(heldout[f'loss/{name}'], '.3f'):>12}{'':10}  {told}")
    if "bits_per_byte" in heldout:
        lines.append(f"{'bits per hidden byte':24}{bits_line(heldout['bits_per_byte']):>12}")
    blanks = "\nHeld-out sentences with their blanks filled in; [guess], or [guess|truth] where wrong:"
    speed = shown(results["tokens_per_second"], ",.0f")
    return "\n".join(
        [
            *lines,
            f"\n{results['steps']:,} steps, {results['tokens']:,} tokens, {speed} tokens/s",
            *([blanks, *(f"  {sentence}" for sentence in filled.split("\n\n"))] if filled else []),
            f"\nlearning curve: {path / 'curves.png'}    all results: {path / 'results.json'}",
            'next: python -m mlm.fill_mask "Return the [MASK] of the list."',
        ]
    )
