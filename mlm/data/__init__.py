"""Training data as a pure function of (seed, step).
Here: shards opened, segments packed into rows, the rows of a step, the masks drawn on them, and counts of neighbours.
Not here: ranks, models, YAML; a module of this package imports the tokenizer and its siblings only.
"""
