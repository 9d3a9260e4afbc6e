"""Labelled texts.

Here: reading, cleaning, splitting, augmenting.
Not here: encoders and heads.
"""
