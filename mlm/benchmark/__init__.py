"""Speed and loss beside other trainers, measured in turns.

Here: `python -m mlm.benchmark`, its cases, the reference implementations, and the frame of both benchmarks.
Not here: anything that another package imports; the wheel leaves this package out.
"""
