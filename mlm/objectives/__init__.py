"""Objectives: each turns a model's outputs into a summed loss, one file each.
Here: masked language modelling.
Not here: the loop, optimizers, files.
"""
