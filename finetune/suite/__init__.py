"""A suite: one encoder fine-tuned on several tasks, and one table of its scores on them.

Here: the command, its runs, its table. Not here: tasks themselves, which are recipes; how one of them is trained.
"""
