"""Pretrain a transformer encoder by masked language modelling (Devlin et al. 2019, section 3.1)."""
