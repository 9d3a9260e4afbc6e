"""The training loop, and all that changes weights or decides when they change.

Here: loop, optimizers, schedules, budgets, FLOPs, signals; fine-tuning uses the same.
Not here: YAML recipes, files, what a metric looks like on a screen.
"""
