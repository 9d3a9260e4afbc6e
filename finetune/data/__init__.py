"""finetune/data."""
