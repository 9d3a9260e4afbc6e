"""Fine-tune a pretrained encoder as a classifier; evaluate, compare and use it."""

import mlm  # noqa: F401 - before torch, which reads once how long a thread spins that waits for another
