import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.sparse import csr_array

from configs import UserError, read
from mlm.build import build, counted_key
from mlm.config import CooccurrenceEmbeddings, PretrainConfig
from mlm.data.corpus import corpus_at
from mlm.experiment import pretrain
from tests.mlm.samples import CPU, VOCABULARY, packed, split_of
from tokenizer.cache import find_or_build_shards, find_or_learn
from tokenizer.mixture import ShardsConfig
from tokenizer.shards.neighbors import FEWEST, count, factors, mutual_information, neighbors
from tokenizer.sources import Files

TEXT = [[3, 4, 5, 3, 4], [5, 5, 4]]


def counted_in_a_loop(segments: list[list[int]], window: int) -> Counter[tuple[int, int]]:
    """Return 1 / distance summed over all pairs of places within a segment, both ways."""
    found = Counter[tuple[int, int]]()
    for tokens in segments:
        for i, token in enumerate(tokens):
            for j in range(max(0, i - window), min(len(tokens), i + window + 1)):
                found[token, tokens[j]] += 0 if i == j else 1 / abs(i - j)  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("window", [1, 2, 9])
def test_neighbors_are_counted_within_segments_by_distance(window: int) -> None:
    firsts = np.cumsum([0, *map(len, TEXT[:-1])])
    counts = neighbors(np.concatenate(TEXT), firsts, 7, window).toarray()
    expected = counted_in_a_loop(TEXT, window)
    for pair in np.ndindex(7, 7):
        assert counts[pair] == pytest.approx(expected[pair])


def test_mutual_information_is_that_of_its_definition() -> None:
    counts = neighbors(np.concatenate(TEXT), np.array([0, 5]), 7, 2)
    found, dense = mutual_information(counts).toarray(), counts.toarray()
    smoothed = dense.sum(axis=0) ** 0.75
    for word, context in np.ndindex(7, 7):
        if not dense[word, context]:
            assert found[word, context] == 0
            continue
        given = dense[word, context] / dense[word].sum()
        assert found[word, context] == pytest.approx(max(0.0, math.log(given / (smoothed[context] / smoothed.sum()))))


@pytest.mark.parametrize("width", [4, 60, 70])
def test_embeddings_have_the_angles_of_the_singular_vectors(width: int) -> None:
    """A width above the size of the vocabulary leaves no information out."""
    rng = np.random.default_rng(0)
    topics = np.kron(np.eye(4), np.ones((15, 15))) + 0.02 * rng.random((60, 60))
    left, values, _ = np.linalg.svd(topics + topics.T)
    kept = left[:, :width] * values[:width] ** 0.5
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    found = factors(csr_array(topics + topics.T), width)
    assert found.shape == (60, width)
    assert found @ found.T == pytest.approx(kept @ kept.T, abs=1e-3)


def test_a_token_that_has_no_neighbors_has_no_embedding() -> None:
    alone = np.repeat(np.arange(10, 40), 10)
    tokens = np.concatenate([np.random.default_rng(0).integers(0, 10, 400), alone])
    counts = neighbors(tokens, np.array([0, *range(400, 700)]), 40, 100_000)
    lengths = np.linalg.norm(factors(mutual_information(counts), 16), axis=1)
    assert lengths == pytest.approx([1] * 10 + [0] * 30, abs=1e-6)


def test_tokens_with_the_same_neighbors_begin_alike_and_rare_ones_at_random() -> None:
    """Tokens 10 and 11 stand in the same places, all others elsewhere; 13 stands too rarely."""
    rng = np.random.default_rng(0)
    low, high = np.array([20, 10, 23, 27, 12, 30]), np.array([23, 12, 27, 30, 13, 34])
    tokens = rng.integers(low, high, (400, 6)).ravel()
    tokens[6 * rng.choice(400, FEWEST - 1, replace=False)] = 13
    rows = packed(replace(split_of([[6]] * 400), tokens=tokens.astype(np.uint16)), alone=True)
    found = count(*rows.sample(20_000_000), VOCABULARY, 2, 16)
    embeddings, shares = found["embeddings"], np.exp(found["output_bias"])
    assert (embeddings @ embeddings[10]).argsort()[-2:].tolist() == [11, 10]
    assert (embeddings @ embeddings[27]).argsort()[-3:].tolist() in ([28, 29, 27], [29, 28, 27])
    assert np.linalg.norm(embeddings[10]) == pytest.approx(1)
    assert not embeddings[13].any()
    counts = np.bincount(tokens, minlength=VOCABULARY) + 1
    assert shares == pytest.approx(counts / counts.sum(), rel=1e-5)


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "old", "dogs", "run", "by"]
RECIPE = ["text.source.kind=files", "vocabulary.size=300", "model.encoder.width=16", "model.encoder.layers=1",
          "model.encoder.heads=2", "model.encoder.feedforward_width=16", "train.budget.steps=3", "train.batch_rows=4",
          "text.heldout_share=0.2", "evaluation.words=5", "tracking=[]"]  # fmt: skip


def config_of(tmp_path: Path, *overrides: str) -> PretrainConfig:
    text = tmp_path / "text.txt"
    if not text.exists():
        words = np.random.default_rng(0).choice(WORDS, (300, 9))
        text.write_text("\n".join(f"{' '.join(line).capitalize()} {i}." for i, line in enumerate(words)))
    return read(PretrainConfig, None, [*RECIPE, f"text.source.paths=[{text}]", f"runs={tmp_path / 'runs'}", *overrides])


def lengths(weights_VD: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.linalg.norm(weights_VD, axis=1))


@pytest.mark.parametrize("wider", [[], ["model.encoder.embedding_width=8", "model.transform=true"]])
def test_a_run_begins_with_the_counted_embeddings(tmp_path: Path, wider: list[str]) -> None:
    made = build(config_of(tmp_path, "initial_embeddings.kind=cooccurrence", *wider), CPU)
    plain = build(config_of(tmp_path, *wider), CPU)
    (path,) = (tmp_path / "runs/cache").glob("embeddings-*.safetensors")
    counted = load_file(path)
    found = made.model.encoder.embeddings.tokens.weight.detach().numpy()
    drawn = plain.model.encoder.embeddings.tokens.weight.detach().numpy()
    replaced = lengths(counted["embeddings"]) > 0
    assert 20 < replaced.sum() < replaced.size
    assert found[replaced] == pytest.approx(counted["embeddings"][replaced] * lengths(drawn).mean(), rel=1e-5)
    assert (found[~replaced] == drawn[~replaced]).all()
    assert made.model.output_bias.detach().numpy() == pytest.approx(counted["output_bias"])
    assert not plain.model.output_bias.any()


def test_counts_are_kept_for_the_next_run_and_another_window_is_counted_anew(tmp_path: Path) -> None:
    made = set[tuple[str, int]]()
    for overrides in ([], ["train.seed=1"], ["initial_embeddings.window=2"], ["text.train_share=0.5"]):
        build(config_of(tmp_path, "initial_embeddings.kind=cooccurrence", *overrides), CPU)
        made |= {(path.name, path.stat().st_mtime_ns) for path in (tmp_path / "runs/cache").glob("embeddings-*")}
    assert len(made) == 3


def test_corpora_divided_otherwise_are_counted_otherwise(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    tokenizer = find_or_learn(config.text, config.vocabulary, tmp_path / "cache")
    text, folders = (tmp_path / "text.txt").read_text().splitlines(), list[str]()
    for number in range(3):
        part = tmp_path / f"{number}.txt"
        part.write_text("\n".join(text[number::3]))
        source = config.text.model_copy(update={"source": Files(paths=(str(part),))})
        folders.append(str(find_or_build_shards(source, config.vocabulary, tmp_path / "cache", tokenizer)))
    keys = set[str]()
    for first in (1, 2):
        corpora = [ShardsConfig(folders=tuple(group), share=0.5) for group in (folders[:first], folders[first:])]
        keys.add(counted_key(CooccurrenceEmbeddings(), corpus_at(corpora, 128, tmp_path / "cache"), 16))
    assert len(keys) == 2


def test_a_damaged_cache_is_told(tmp_path: Path) -> None:
    config = config_of(tmp_path, "initial_embeddings.kind=cooccurrence")
    build(config, CPU)
    (path,) = (tmp_path / "runs/cache").glob("embeddings-*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path} is not a safetensors file"):
        build(config, CPU)


def test_trained_embeddings_are_not_replaced_by_counted_ones(tmp_path: Path) -> None:
    run = pretrain(config_of(tmp_path, "initial_embeddings.kind=cooccurrence"))
    with pytest.raises(UserError, match=r"set initial_embeddings\.kind=random"):
        config_of(tmp_path, f"start_from={run.path}", "initial_embeddings.kind=cooccurrence")
    assert pretrain(config_of(tmp_path, f"start_from={run.path}", "train.budget.steps=1")).results is not None
