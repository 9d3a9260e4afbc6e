"""Everything that shows a run while it trains.

Here: the run's directory, metrics.jsonl and TensorBoard, FLOPs, the progress bar, plots.
Not here: decisions; nothing in this package changes a weight.
"""
