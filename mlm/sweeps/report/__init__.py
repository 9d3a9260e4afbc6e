"""The answer of a sweep: a table of its trials, statistics over seeds, plots, and the verdict on its hypothesis.

Everything but the learning curves and the best configuration is made from the table alone, so that a study can be
rebuilt from the small files that are kept of its sweeps.
"""
