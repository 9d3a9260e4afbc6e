"""Draw the pictures of docs/demo.md in a real browser: `python docs/demo_pictures.py RUN FINE_TUNED_RUN`.

It needs the extras `demo` and `test`, and Debian's packages chromium and chromium-driver.
"""

import io
import subprocess
import sys
from pathlib import Path

from PIL import Image

from configs.files import written
from tests.finetune.demo.browser import browser, find, resize, wait

FOLDER = Path(__file__).parent
WIDTH = 760
COLOURS = 128
"""Of the palette of a picture, which makes its file smaller."""
PICTURES = {
    "demo_fill_mask.png": ("Return the [MASK] of the list.", "#words button:nth-of-type(6)"),
    "demo_classifier.png": ("The flood took our bridge, and my phone just crashed again.", None),
}
"""The example and the word to click, by the picture of each kind of model."""


def main(runs: list[str]) -> None:
    """Draw the pictures."""
    for run, (name, (text, clicked)) in zip(runs, PICTURES.items(), strict=True):
        command = [sys.executable, "-m", "finetune.demo", run, text, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, browser() as driver:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[0]
                resize(driver, WIDTH, 900)
                driver.get(address)
                wait(driver, lambda: find(driver, "#drawn line"))
                if clicked:
                    find(driver, clicked)[0].click()
                    wait(driver, lambda: len(find(driver, "#guesses h3")) == 2)
                resize(driver, WIDTH)
                with written(FOLDER / name) as partial:
                    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png()))
                    picture.quantize(COLOURS).save(partial, format="png", optimize=True)
            finally:
                server.terminate()


if __name__ == "__main__":
    main(sys.argv[1:])
