"""TensorBoard's files, on a disk that may fail."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Writes to TensorBoard, whose writer ends at the first full disk; a new one takes over at the next chance."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        """Write into `folder`; what is there of `purge_step` and later is shown no more."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self.writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, show: Callable[["SummaryWriter"], object]) -> None:
        """Give the writer to `show`.

        Raises:
            OSError: the disk is full or not writable, or was when something was shown before, which is lost.

        """
        from torch.utils.tensorboard import SummaryWriter

        try:
            if self.writer is None:
                self.writer = SummaryWriter(str(self.folder))
            show(self.writer)
        except OSError:
            self.writer = None
            raise

    def close(self) -> None:
        """Write what is still on its way.

        Raises:
            OSError: the disk is full or not writable.

        """
        if self.writer is not None:
            self.write(lambda writer: writer.close())
