"""The page in a real browser: clicks, keys, pictures, and no request to any other site."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from finetune.demo import __main__ as demo
from finetune.demo.models import Classifier, LanguageModel
from tests.finetune import samples
from tests.finetune.demo import browser
from tests.finetune.demo.browser import find, requested, resize, wait
from tests.finetune.demo.conftest import served
from tests.finetune.demo.test_page import ATTACK, ROOT

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytest.importorskip("gradio", reason="not installed: gradio (pip install -e '.[demo]')")
pytest.importorskip("selenium", reason="not installed: selenium")
pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio's threads meet those of pandas and others
needs_browser = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
SENTENCE = "the old bridge was flooded, last night"


@pytest.fixture(scope="module")
def driver() -> "Iterator[Chrome]":
    with browser.browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def sentences(language_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(language_model, [[SENTENCE], ["her [MASK] sleeps"]], tmp_path_factory.mktemp("tables")) as address:
        yield address


@pytest.fixture(scope="module")
def classes(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(classifier, [["my neighbour has been evacuated"]], tmp_path_factory.mktemp("tables")) as address:
        yield address


def ask(driver: "Chrome", text: str) -> None:
    """Type a text in place of the one before, and send it by the Enter key."""
    (field,) = find(driver, "textarea")
    field.clear()
    field.send_keys(text, "\ue007")


def texts(driver: "Chrome", selector: str) -> list[str]:
    return [found.text for found in find(driver, selector)]


def pressed(driver: "Chrome") -> list[str | None]:
    return [found.get_attribute("aria-pressed") for found in find(driver, "#words button")]


def errors(driver: Any) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


@needs_browser
def test_words_are_hidden_and_shown_by_mouse_and_keyboard(driver: "Chrome", sentences: str, tmp_path: Path) -> None:
    requested(driver)
    resize(driver, 1000, 900)
    driver.get(sentences)
    wait(
        driver,
        lambda: texts(driver, "#words button") == ["the", "old", "bridge", "was", "flooded", ",", "last", "night"],
    )
    assert pressed(driver) == ["false"] * 8
    assert find(driver, "#guesses li") == []
    before = driver.get_screenshot_as_png()
    find(driver, "#words button")[2].click()
    wait(driver, lambda: find(driver, "#guesses li"))
    assert pressed(driver) == [*["false"] * 2, "true", *["false"] * 5]
    assert texts(driver, "#words button")[2] == "[MASK]"
    assert texts(driver, "#guesses h3") == ["Instead of “bridge”"]
    assert len(find(driver, "#guesses li")) == 8
    assert all(re.fullmatch(r"\d+\.\d%", text) for text in texts(driver, "#guesses .number"))
    widths = [bar.size["width"] for bar in find(driver, "#guesses .bar span")]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 100
    picture = driver.get_screenshot_as_png()
    assert picture.startswith(b"\x89PNG")
    assert picture != before
    # The keyboard alone: from the pressed word to the next one and back. The focus stays where it was, and is seen.
    driver.switch_to.active_element.send_keys("\ue004")
    driver.switch_to.active_element.send_keys("\ue007")
    wait(driver, lambda: len(find(driver, "#guesses h3")) == 2)
    assert driver.switch_to.active_element.get_attribute("aria-label") == "was, hidden"
    assert driver.switch_to.active_element.value_of_css_property("outline-style") == "solid"
    driver.switch_to.active_element.send_keys("\ue00d")
    wait(driver, lambda: pressed(driver) == [*["false"] * 2, "true", *["false"] * 5])
    find(driver, "#words button")[2].click()
    wait(driver, lambda: not find(driver, "#guesses li"))
    assert all(address.startswith((sentences, "data:")) for address in requested(driver))
    assert errors(driver) == []


FAIL_ONCE = """
const plain = fetch, words = document.querySelectorAll("#words button");
window.fetch = () => { window.fetch = plain; return new Promise((_, refuse) => setTimeout(refuse, 300)); };
words[2].click();
words[4].click();
"""


@needs_browser
def test_a_failed_call_does_not_lose_a_newer_click(driver: "Chrome", sentences: str) -> None:
    driver.get(sentences)
    wait(driver, lambda: find(driver, "#words button"))
    driver.execute_script(FAIL_ONCE)
    wait(driver, lambda: texts(driver, "#guesses h3") or texts(driver, "#message") != [""])
    assert texts(driver, "#guesses h3") == ["Instead of “bridge”", "Instead of “flooded”"]
    assert texts(driver, "#message") == [""]


@needs_browser
def test_attention_is_drawn_for_each_layer_head_and_word(driver: "Chrome", sentences: str) -> None:
    driver.get(sentences)
    wait(driver, lambda: find(driver, "#drawn line"))
    assert texts(driver, "#from button") == ["[CLS]", *texts(driver, "#words button"), "[SEP]"]
    assert texts(driver, "#layer option") == ["1 of 2", "2 of 2"]
    assert texts(driver, "#head option") == ["mean of all", "1 of 2", "2 of 2"]
    drawn = {driver.execute_script("return document.getElementById('drawn').innerHTML")}
    for layer in find(driver, "#layer option"):
        for head in find(driver, "#head option")[1:]:
            layer.click()
            head.click()
            drawn.add(driver.execute_script("return document.getElementById('drawn').innerHTML"))
    assert len(drawn) == 5
    chosen = find(driver, "#from button")[3]
    chosen.click()
    assert chosen.get_attribute("aria-pressed") == "true"
    assert {line.get_attribute("y1") for line in find(driver, "#drawn line")} == {"98"}
    shares = [int(text.split("%")[0]) for text in texts(driver, "#to span")]
    assert sum(shares) == pytest.approx(100, abs=5)
    drawn_shares = [
        max(shares) * float(str(line.get_attribute("stroke-opacity"))) for line in find(driver, "#drawn line")
    ]
    assert drawn_shares == pytest.approx([share for share in shares if share >= 2])


@needs_browser
def test_a_text_is_shown_as_it_is_and_a_long_one_refused(driver: "Chrome", sentences: str) -> None:
    driver.get(sentences)
    wait(driver, lambda: find(driver, "#words button"))
    shown = " ".join(ATTACK[:44].split())
    ask(driver, shown)
    wait(driver, lambda: "<" in texts(driver, "#words button"))
    assert "".join(texts(driver, "#words button")) == shown.replace(" ", "")
    assert driver.title == "tiny: try the model"
    assert find(driver, "#words script, #lines script, img") == []
    ask(driver, "a " * 400)
    wait(driver, lambda: texts(driver, "#message") != [""])
    assert texts(driver, "#message") == ["the text has 799 characters, over this page's 500: shorten it"]
    ask(driver, SENTENCE)
    wait(driver, lambda: texts(driver, "#message") == [""])


@needs_browser
def test_a_classifier_shows_classes_contributions_and_classifies_a_table(
    driver: "Chrome", classes: str, classifier: Classifier, tmp_path: Path
) -> None:
    requested(driver)
    driver.get(classes)
    wait(driver, lambda: find(driver, "#classes li"))
    (found,) = classifier.classify([{"text": "my neighbour has been evacuated"}], samples.CPU)
    ranked = sorted(zip(found.probabilities, classifier.class_names, strict=True), reverse=True)
    assert texts(driver, "#class-title") == [f"Predicted class: {ranked[0][1]}"]
    assert texts(driver, "#classes li") == [f"{name}\n{chance:.1%}" for chance, name in ranked]
    assert [text.split("\n")[0] for text in texts(driver, ".worth")] == ["my", "neighbour", "has", "been", "evacuated"]
    assert find(driver, "#drawn line")
    (file,) = find(driver, "#file")
    file.send_keys(str(samples.write_csv(tmp_path / "table.csv", 40)))
    find(driver, "#table button")[0].click()
    wait(driver, lambda: "classified" in texts(driver, "#table-message")[0])
    assert texts(driver, "#table-message") == ["40 rows classified"]
    script = "const done = arguments[0]; fetch(document.getElementById('download').href).then(r => r.text()).then(done)"
    table = list(csv.reader(io.StringIO(driver.execute_async_script(script))))
    assert len(table) == 41
    expected = classifier.classify([{"text": row[1]} for row in table[1:]], samples.CPU)
    for row, prediction in zip(table[1:], expected, strict=True):
        assert list(map(float, row[-2:])) == pytest.approx(prediction.probabilities, abs=1e-5)
    (tmp_path / "wrong.csv").write_text("words\na\n")
    file.send_keys(str(tmp_path / "wrong.csv"))
    find(driver, "#table button")[0].click()
    wait(driver, lambda: "wrong.csv" in texts(driver, "#table-message")[0])
    assert all(address.startswith((classes, "data:")) for address in requested(driver))


@needs_browser
def test_both_pages_fit_a_phone(driver: "Chrome", sentences: str, classes: str) -> None:
    for address in (sentences, classes):
        resize(driver, 390, 800)
        driver.get(address)
        wait(driver, lambda: find(driver, "#drawn line"))
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    resize(driver, 1000, 900)


@needs_browser
def test_an_exported_page_works_from_disk(driver: "Chrome", run: Path, tmp_path: Path) -> None:
    demo.main([str(run), "the river is calm", "a [MASK] sleeps", "--export", str(tmp_path / "page.html")])
    requested(driver)
    address = (tmp_path / "page.html").as_uri()
    driver.get(address)
    wait(driver, lambda: find(driver, "#words button"))
    find(driver, "#words button")[1].click()
    wait(driver, lambda: texts(driver, "#guesses h3") == ["Instead of “river”"])
    find(driver, "#words button")[3].click()
    wait(driver, lambda: texts(driver, "#guesses h3") == ["Instead of “calm”"])
    find(driver, "#examples button")[1].click()
    wait(driver, lambda: texts(driver, "#guesses h3") == ["Hidden word 1"])
    assert find(driver, "#drawn line")
    assert {found for found in requested(driver) if not found.startswith("data:")} == {address}
    assert errors(driver) == []


WITHOUT_A_NAME_LOOKED_UP = """
import runpy, socket, sys

def told(host, *rest, **named):
    print("looks up", host, file=sys.stderr)
    raise OSError

socket.getaddrinfo = told
runpy.run_module("finetune.demo", run_name="__main__", alter_sys=True)
"""


def test_ctrl_c_ends_the_server_in_one_line_and_it_has_asked_nobody(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_A_NAME_LOOKED_UP, str(run), "--port", "0"]
    places = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=places, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        with urlopen(line.split()[0], timeout=300) as answer:
            shown = answer.read().decode()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=300)
    assert re.match(r"http://127\.0\.0\.1:\d+/ ", line)
    assert (process.returncode, *said) == (130, "", "\ninterrupted\n")
    assert "<title>tiny: try the model</title>" in shown
    assert list(tmp_path.glob("tmp*")) == []
