"""Measures of a classifier.

Here: metrics, baselines, results, tables and figures.
Not here: training.
"""
