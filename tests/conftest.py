"""What all tests share."""

import os

# Tiny models gain nothing from threads, and threads that wait for a busy core lose much. Commands that tests start
# inherit it; torch reads it when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
