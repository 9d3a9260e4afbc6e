"""Everything that shows a run while it trains, and what leaves it.

Here: the run's directory, metrics.jsonl and TensorBoard, FLOPs, the progress bar, plots; exported runs with their model
cards, and the directory of a converted encoder.
Not here: decisions; nothing in this package changes a weight.
"""
