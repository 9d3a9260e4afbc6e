"""Pretrain a transformer encoder by masked language modelling (Devlin et al. 2019, section 3.1)."""

import own_packages

own_packages.check(__name__)
