"""finetune/evaluation."""
