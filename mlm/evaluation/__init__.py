"""Measures of an encoder's worth.

Here: held-out results, n-gram baselines, bits per byte, filled-in blanks.
Not here: training, and how results are shown.
"""
