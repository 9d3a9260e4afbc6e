"""Measure fine-tuning and prediction beside the transformers library's Trainer: in turn, on one encoder and machine.

Both sides have the same BERT with a linear layer on [CLS], the same dropout, texts and batch size, and AdamW. Ours is
the shipped loop: batches of examples of like length, in bfloat16 where the hardware has it. Theirs is the Trainer on
every example padded to 64 tokens in float32, as its users mostly run it; and once more at its best, padded to the
longest of each batch and in our precision. Every figure is a median with the lowest and the highest; what exactly it
counts stands in the JSON.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
