"""A real browser without a window: Debian's Chromium, driven by Selenium."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

SECONDS = 300
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--no-first-run", "--lang=en"),
)


def missing() -> str | None:
    """Return what there is no browser for, if anything."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"not installed: {' and '.join(absent)} (apt-get install chromium chromium-driver)" if absent else None


@contextmanager
def browser() -> Iterator["Chrome"]:
    """Return a context with a browser that logs its requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options: Any = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(SECONDS)
        yield driver
    finally:
        driver.quit()


def resize(driver: "Chrome", width: int, height: int | None = None) -> None:
    """Set the size of the page in pixels, a phone's if it is narrow; without a height, that of its content."""
    whole = height or driver.execute_script("return document.documentElement.offsetHeight")
    size = {"width": width, "height": whole, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def find(driver: "Chrome", selector: str) -> "list[WebElement]":
    """Return the elements that a CSS selector finds."""
    return driver.find_elements("css selector", selector)


def wait(driver: "Chrome", happened: Callable[[], Any]) -> None:
    """Wait until something has happened, and the page asks for nothing more."""
    from selenium.webdriver.support.wait import WebDriverWait

    settled = "return document.querySelector('#answer.old, #table button:disabled') === null"
    WebDriverWait(driver, SECONDS, poll_frequency=0.05).until(lambda _: driver.execute_script(settled) and happened())


def requested(driver: "Chrome") -> set[str]:
    """Return the addresses that the page has asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]  # type: ignore[no-untyped-call]
    return {found["params"]["request"]["url"] for found in messages if found["method"] == "Network.requestWillBeSent"}
