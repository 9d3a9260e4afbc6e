"""Speed and loss beside other trainers, measured in turns.

Here: `python -m mlm.benchmark`, its cases and the reference implementations.
Not here: anything that another package imports; the wheel leaves this one out.
"""
