"""Fine-tune a pretrained encoder as a classifier; evaluate, compare and use it."""
