"""Baselines without an encoder: the majority class, and n-grams of characters and words with logistic regression."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.examples import DataSplit, Examples
from finetune.evaluation.metrics import Metric, deviation_of, number_scores, scores

LONGEST_TEXT = 2_000
MOST_FEATURES, MOST_WEIGHTS = 200_000, 10_000_000
"""Largest numbers of n-grams of a kind and of weights, which are n-grams x classes: L-BFGS takes 200 bytes a weight."""
N_GRAMS = {"char_wb": (2, 5), "word": (1, 2)}
"""Shortest and longest n-grams of each kind, by the names of scikit-learn."""
WORD_OR_MARK = r"\w+|[^\w\s]"
MOST_ITERATIONS, MOST_PROBABILITIES = 1_000, 4_000_000_000
"""Largest numbers of iterations and of probabilities that they compute, which are examples x classes an iteration."""


def predict_majority(split: DataSplit, num_classes: int) -> NDArray[np.float64]:
    """Return the shares of the classes in training and validation as the probabilities of each test text, (N, C).

    Of a number, the mean takes their place, (N, 1).
    """
    labels_N = _seen(split)
    shares_C = [labels_N.mean()] if num_classes == 1 else np.bincount(labels_N, minlength=num_classes) / len(labels_N)
    return np.tile(shares_C, (len(split.test), 1))


def predict_tfidf(split: DataSplit, num_classes: int) -> NDArray[np.float64]:
    """Return the probabilities, (N, C), that TF-IDF over n-grams with logistic regression gives to the test texts.

    The n-grams are those of 2 to 5 characters within words (with a space at either end), and those of one and two
    words or punctuation marks. They count logarithmically, and occur in at least two texts. The validation part is
    training data as well, because nothing is chosen on it: the baseline is not made weak. To bound time and memory,
    the first 2,000 characters of a text are read, and the 200,000 most frequent n-grams of either kind kept; with more
    than 25 classes fewer n-grams, and with thousands of classes fewer iterations. If there is nothing to learn (a
    single class, or no n-gram that two texts share) the majority class is predicted.

    A number, (N, 1), is predicted by ridge regression; of pairs, on the products and the differences of both texts'
    n-grams.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    labels_N = _seen(split)
    features = _features(split, num_classes)
    if features is None or (num_classes > 1 and len(np.unique(labels_N)) == 1):
        return predict_majority(split, num_classes)
    features_NF, tested_NF = features
    if num_classes == 1:
        numbers_N1: NDArray[np.float64] = Ridge().fit(features_NF, labels_N).predict(tested_NF)[:, None]
        return numbers_N1
    iterations = min(MOST_ITERATIONS, max(MOST_PROBABILITIES // (len(labels_N) * num_classes), 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model = LogisticRegression(C=2.0, max_iter=iterations).fit(features_NF, labels_N)
    probabilities_NC = np.zeros((len(split.test), num_classes))
    probabilities_NC[:, model.classes_] = model.predict_proba(tested_NF)
    return probabilities_NC


def measured(split: DataSplit, predictions_NC: NDArray[np.float64]) -> dict[Metric, float | None]:
    """Return the scores of predictions on the test part."""
    if predictions_NC.shape[1] == 1:
        return number_scores(split.test.labels, predictions_NC[:, 0], deviation_of(split.train.labels))
    return scores(split.test.labels, predictions_NC)


def _features(split: DataSplit, num_classes: int) -> tuple[Any, Any] | None:
    """Return the features of training and validation, and of the test part; None if no n-gram is left."""
    from scipy import sparse

    parts = split.train, split.validation
    if num_classes > 1 or len(split.train.texts[0]) == 1:
        seen = [text for part in parts for text in _joined(part)]
        features_of = _fit_ngrams(seen, num_classes)
        return (features_of(seen), features_of(_joined(split.test))) if features_of else None
    features_of = _fit_ngrams([text[:LONGEST_TEXT] for part in parts for texts in part.texts for text in texts], 1)
    if features_of is None:
        return None

    def compared(pairs: Sequence[tuple[str, ...]]) -> Any:
        one, other = (features_of([texts[side][:LONGEST_TEXT] for texts in pairs]) for side in (0, 1))
        return sparse.hstack([one.multiply(other), abs(one - other)]).tocsr()

    return compared([texts for part in parts for texts in part.texts]), compared(split.test.texts)


def _fit_ngrams(texts: Sequence[str], num_classes: int) -> Callable[[Sequence[str]], Any] | None:
    """Return a function from texts to their features, by the n-grams of some texts; None if these share none."""
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizers = []
    for kind, lengths in N_GRAMS.items():
        vectorizer = TfidfVectorizer(
            analyzer=kind,
            ngram_range=lengths,
            token_pattern=WORD_OR_MARK if kind == "word" else None,
            sublinear_tf=True,
            min_df=2,
            max_features=min(MOST_FEATURES, MOST_WEIGHTS // (len(N_GRAMS) * num_classes)),
            dtype=np.float32,
        )
        with contextlib.suppress(ValueError):  # an empty vocabulary, as of words where a script has no spaces
            vectorizers.append(vectorizer.fit(texts))
    if not vectorizers:
        return None
    return lambda read: sparse.hstack([vectorizer.transform(read) for vectorizer in vectorizers]).tocsr()


def _seen(split: DataSplit) -> NDArray[Any]:
    """Return the labels of training and validation."""
    return np.concatenate([split.train.labels, split.validation.labels])


def _joined(examples: Examples) -> list[str]:
    """Return one text per example; no n-gram of characters crosses the space between the texts of a pair."""
    return [" ".join(texts)[:LONGEST_TEXT] for texts in examples.texts]
