"""Baselines without an encoder: the majority class, and character n-grams with logistic regression."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from finetune.data.examples import DataSplit, Examples
from finetune.evaluation.metrics import Metric, scores

LONGEST_TEXT = 2_000


def majority(split: DataSplit, num_classes: int) -> dict[Metric, float | None]:
    """Return the scores of always predicting the most frequent class of training and validation, on the test part."""
    labels_N = _seen(split)
    shares_C = np.bincount(labels_N, minlength=num_classes) / len(labels_N)
    return scores(split.test.labels, np.tile(shares_C, (len(split.test), 1)))


def bag_of_words(split: DataSplit, num_classes: int) -> dict[Metric, float | None]:
    """Return the scores of TF-IDF over character 2- to 5-grams with logistic regression, on the test part.

    The validation part is training data as well, because nothing is chosen on it: the baseline is not made weak. The
    n-grams stay within words (with a space at either end), count logarithmically, and occur in at least two texts. To
    bound time and memory, the first 2,000 characters of a text are read, and the 200,000 most frequent n-grams kept. If
    there is nothing to learn (a single class, or no n-gram that two texts share) the majority class is predicted.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2, max_features=200_000, dtype=np.float32
    )
    labels_N = _seen(split)
    try:
        features_NF = vectorizer.fit_transform([*_joined(split.train), *_joined(split.validation)])
    except ValueError:  # scikit-learn raises it for an empty vocabulary
        return majority(split, num_classes)
    if len(np.unique(labels_N)) == 1:
        return majority(split, num_classes)
    model = LogisticRegression(C=2.0, max_iter=1_000).fit(features_NF, labels_N)
    probabilities_NC = np.zeros((len(split.test), num_classes))
    probabilities_NC[:, model.classes_] = model.predict_proba(vectorizer.transform(_joined(split.test)))
    return scores(split.test.labels, probabilities_NC)


def _seen(split: DataSplit) -> NDArray[np.int64]:
    """Return the labels of training and validation."""
    return np.concatenate([split.train.labels, split.validation.labels])


def _joined(examples: Examples) -> Iterator[str]:
    """Yield one text per example; no n-gram crosses the space between the texts of a pair."""
    return (" ".join(texts)[:LONGEST_TEXT] for texts in examples.texts)
