"""Fine-tune a pretrained encoder as a classifier; evaluate, compare and use it."""

import own_packages

own_packages.check(__name__)
