"""Text to ids and back, without torch.

Here: cleaning, the byte-level vocabulary, published tokenizers, encoding, the cache of what was built, and the commands
`train` and `encode`.
In `sources`: where documents come from. In `shards`: ids in memory-mapped files. Not here: models and training.
"""

import own_packages

own_packages.check(__name__)
