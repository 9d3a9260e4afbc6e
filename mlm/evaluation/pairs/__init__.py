"""Minimal pairs: does a model prefer the sentence that is right? (BLiMP, Warstadt et al. 2020)

Here: the pairs, published ones and a small grammar's own, the likelihood of their sentences, and the accuracy.
Not here: hidden tokens in general, which the bits per byte ask for as well.
"""
