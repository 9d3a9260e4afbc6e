"""Training data as a pure function of seed, step and mask rate, which is constant unless `final_rate` is set.
Here: shards opened as a corpus, the rows of a step, and the masks drawn on them.
Not here: packing, which `tokenizer.shards` does; ranks, models, YAML. It imports `tokenizer` and `configs` only.
"""
