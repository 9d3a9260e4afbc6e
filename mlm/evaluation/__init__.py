"""Measures of an encoder's quality.

Here: held-out results, n-gram baselines, bits per byte, filled-in blanks.
Not here: training, and the display of results.
"""
