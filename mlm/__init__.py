"""Pretrain a transformer encoder by masked language modelling (Devlin et al. 2019, section 3.1)."""

import os

# A thread that waits for another soon gives its core away instead of spinning on it. Where anything else runs on the
# machine, spinning threads make training up to ten times slower. Read once, when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    # DistributedDataParallel warns, on every rank, of the option that keeps the order of summation as it is.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
