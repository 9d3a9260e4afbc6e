"""Measures of an encoder's quality.

Here: held-out results, n-gram baselines, bits per byte, minimal pairs, filled-in blanks, the loss by target and by
position, attention weights.
Not here: training, and the display of results.
"""
