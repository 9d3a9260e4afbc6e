"""Training data as a pure function of (seed, step).
Here: shards opened, segments packed into rows, the rows of a step, and the masks drawn on them.
Not here: ranks, models, YAML; a module of this package imports the tokenizer and its siblings only.
"""
