"""Fine-tune an encoder with one linear layer over its pooled hidden states (Devlin et al. 2019, section 4.1)."""

from functools import partial

from configs import command
from finetune import command_line

parse = partial(command_line.parse, "linear", __doc__)
main = partial(command_line.main, "linear", __doc__)
script = partial(command.run, main)

if __name__ == "__main__":
    script()
