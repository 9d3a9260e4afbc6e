"""Fine-tuning speed beside transformers' Trainer.

Here: `python -m finetune.benchmark` and its cases; the frame is `mlm.benchmark.frame`.
Not here: anything that another package imports; the wheel leaves this package out.
"""
