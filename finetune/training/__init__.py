"""The classifier and its task for the training loop of `mlm.training`.

Here: the classifier, the classification task, which weights are trained, low-rank adapters.
Not here: a loop of its own.
"""
