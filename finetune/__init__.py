"""Turn a pretrained encoder into a classifier that can be judged, compared and used."""

import mlm  # noqa: F401 - before torch, which reads once how long a thread spins that waits for another
