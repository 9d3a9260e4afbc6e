"""finetune/training."""
