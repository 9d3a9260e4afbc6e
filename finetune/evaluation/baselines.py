"""What needs no encoder: the majority class, and a bag of character n-grams with logistic regression."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from finetune.data.examples import DataSplit, Examples
from finetune.evaluation.metrics import Metric, scores

CHARACTERS = (2, 5)
FEWEST_TEXTS = 2
MOST_FEATURES = 200_000
LONGEST_TEXT = 2_000
INVERSE_PENALTY = 2.0
MOST_ITERATIONS = 1_000


def majority(split: DataSplit, num_classes: int) -> dict[Metric, float | None]:
    """Score on the test part the class that is the most frequent one in the rest, always predicted."""
    return scores(split.test.labels, _shares(_seen(split), num_classes, len(split.test)))


def bag_of_words(split: DataSplit, num_classes: int) -> dict[Metric, float | None]:
    """Score TF-IDF of character 2- to 5-grams with logistic regression on the test part.

    It has nothing to choose on the validation part, so it gets that as training data too, which the neural model
    does not: the baseline is not made weak. The n-grams stay within words (with a space at either end), count
    logarithmically, and stand in at least two texts. Of long texts the first 2,000 characters are read and of the
    n-grams the 200,000 most frequent are kept, which bounds time and memory. Where the texts leave nothing to learn
    (a single class, no n-gram that two texts share) it is the majority class.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    labels_N = _seen(split)
    probabilities_NC = _shares(labels_N, num_classes, len(split.test))
    vectorizer = TfidfVectorizer(
        analyzer="char_wb",
        ngram_range=CHARACTERS,
        sublinear_tf=True,
        min_df=FEWEST_TEXTS,
        max_features=MOST_FEATURES,
        dtype=np.float32,
    )
    texts = [*_joined(split.train), *_joined(split.validation)]
    try:
        features_NF = vectorizer.fit_transform(texts) if len(np.unique(labels_N)) > 1 else None
    except ValueError:  # scikit-learn's answer to a vocabulary of nothing
        features_NF = None
    if features_NF is not None:
        model = LogisticRegression(C=INVERSE_PENALTY, max_iter=MOST_ITERATIONS).fit(features_NF, labels_N)
        probabilities_NC = np.zeros_like(probabilities_NC)
        probabilities_NC[:, model.classes_] = model.predict_proba(vectorizer.transform(_joined(split.test)))
    return scores(split.test.labels, probabilities_NC)


def _seen(split: DataSplit) -> NDArray[np.int64]:
    """Return the labels that a baseline learns from."""
    return np.concatenate([split.train.labels, split.validation.labels])


def _shares(labels_N: NDArray[np.int64], num_classes: int, examples: int) -> NDArray[np.float64]:
    """Return the classes' shares of the labels as the probabilities of each of so many examples."""
    shares_C = np.bincount(labels_N, minlength=num_classes) / max(len(labels_N), 1)
    return np.tile(shares_C, (examples, 1))


def _joined(examples: Examples) -> Iterator[str]:
    """Yield one text for each example; the space between those of a pair is one that no n-gram crosses."""
    return (" ".join(texts)[:LONGEST_TEXT] for texts in examples.texts)
