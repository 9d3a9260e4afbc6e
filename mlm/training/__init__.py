"""The training loop, and everything that changes weights or decides when they change.
Here: loop, optimizers, schedules, budgets; fine-tuning uses the same.
Not here: YAML recipes, files, the display of metrics.
"""
