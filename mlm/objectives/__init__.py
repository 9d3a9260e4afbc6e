"""Objectives: each turns a model's outputs into a summed loss, in a file of its own.

Here: masked language modelling.
Not here: the loop, optimizers, files.
"""
