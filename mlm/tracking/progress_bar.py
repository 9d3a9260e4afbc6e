"""A progress bar on a terminal; plain lines, now and then, anywhere else."""

import sys
import time

from tqdm import tqdm

from mlm.training.budget import TrainingLength, TrainingProgress

LINE_SECONDS = 10.0


class ProgressBar:
    """Shows how far training has come, with loss, speed and time left."""

    def __init__(self, plan: TrainingLength, start: TrainingProgress, *, silent: bool = False) -> None:
        """Begin at `start`; a `silent` one, of a process that does not lead, shows nothing but what it is to say."""
        self.plan, self.silent = plan, silent
        self.terminal = sys.stderr.isatty() and not silent
        self.printed = 0.0
        unit, total, initial = "step", plan.steps, start.step
        if plan.seconds is not None:
            unit, total, initial = "s", round(plan.seconds), int(start.seconds)
        self.bar = tqdm(total=total, initial=initial, unit=unit, disable=not self.terminal, dynamic_ncols=True)

    def show(
        self, progress: TrainingProgress, loss: float, tokens_per_second: float, heldout_loss: float | None
    ) -> None:
        """Show the training loss in nats, tokens a second and the last held-out loss."""
        heldout = "" if heldout_loss is None else f", held-out {heldout_loss:.3f}"
        text = f"loss {loss:.3f}{heldout}, {tokens_per_second:,.0f} tokens/s"
        done = progress.step if self.plan.steps is not None else int(progress.seconds)
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(done - self.bar.n)
        now = time.monotonic()
        if self.terminal or self.silent:
            return
        if now - self.printed > LINE_SECONDS or self.plan.finished(progress):
            self.printed = now
            fraction = min(self.plan.fraction(progress), 1.0)
            left = progress.seconds * (1 - fraction) / fraction if fraction else 0.0
            print(f"step {progress.step} ({fraction:.0%}): {text}, {left:,.0f} s left", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
