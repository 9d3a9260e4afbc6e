"""Objectives: each turns a model's outputs into a summed loss, one file each.
Here: masked language modelling, and the detection of swapped and random tokens.
Not here: the loop, optimizers, files.
"""
