"""Fine-tune an encoder with the head of Kim 2014: convolutions, each filter's strongest answer, linear."""

from functools import partial

from configs import command
from finetune import command_line

parse = partial(command_line.parse, "cnn", __doc__)
main = partial(command_line.main, "cnn", __doc__)
script = partial(command.run, main)

if __name__ == "__main__":
    script()
