"""Encoders in and out of the transformers library, exactly.

Here: one file for each architecture with its names of our tensors, the reading of published checkpoints, and exports.
Not here: commands. Nothing here is approximated: what has no exact counterpart is refused with the reason.
"""
