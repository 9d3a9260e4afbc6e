"""The page and its command, without a browser."""

import base64
import hashlib
import html
import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import UserError
from finetune.demo import __main__ as demo
from finetune.demo import answers, models, page, server
from finetune.demo.models import Classifier, LanguageModel
from tests.finetune import samples

ATTACK = """<script>document.title = "broken"</script> "</script><img src=x onerror=alert(1)>' & \u2028"""
ROOT = Path(__file__).parents[3]


def parts(shown: str) -> tuple[str, str, Any]:
    """Return style, script and data of a page."""
    style, data, script = re.findall(r"<(?:style|script)[^>]*>(.*?)</(?:style|script)>", shown, re.DOTALL)
    return style, script, json.loads(data)


def test_a_text_cannot_leave_the_data_of_the_page(language_model: LanguageModel) -> None:
    content = page.content(language_model, ATTACK, [[ATTACK]])
    shown = page.page({**content, "answers": [{"": answers.fill_mask(language_model, ATTACK[:44], [])}]})
    _, script, data = parts(shown)  # there are two scripts: none came in by the text
    assert data["name"] == data["examples"][0][0] == ATTACK
    assert html.escape(ATTACK) in shown
    assert "<img" not in shown
    assert "innerHTML" not in script
    assert "insertAdjacentHTML" not in script


def test_the_policy_of_a_page_allows_its_own_style_and_script_and_nothing_else(language_model: LanguageModel) -> None:
    content = page.content(language_model, "tiny", [["a river"]])
    cases: list[tuple[dict[str, Any], str]] = [({}, "; connect-src 'self'"), ({"answers": []}, "")]
    for answered, own in cases:
        shown = page.page({**content, **answered})
        style, script, _ = parts(shown)
        style_hash, script_hash = (
            base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)
        )
        policy = (
            f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'"
        )
        assert f'content="{policy}{own}"' in shown
        assert re.findall(r"https?://[^\"']+", shown) == ["http://www.w3.org/2000/svg"]  # a name that nobody asks for


def test_an_exported_page_has_an_answer_for_each_word(tmp_path: Path, run_with_cls: Path, tuned: Path) -> None:
    written = tmp_path / "page.html"
    demo.main([str(run_with_cls), "the [MASK] river", "a storm", "--export", str(written)])
    *_, data = parts(written.read_text(encoding="utf-8"))
    assert data["examples"] == [["the [MASK] river"], ["a storm"]]
    assert [list(found) for found in data["answers"]] == [["", "0", "2"], ["", "0", "1"]]
    for hidden, answer in data["answers"][0].items():
        assert [word["hidden"] for word in answer["words"]] == [hidden == "0", True, hidden == "2"]
        assert all(len(word["guesses"]) == answers.TOP for word in answer["words"] if word["hidden"])
    before = written.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        demo.main([str(run_with_cls), "--export", str(written)])
    assert written.read_bytes() == before
    demo.main([str(tuned), "--export", str(tmp_path / "classes.html")])
    *_, data = parts((tmp_path / "classes.html").read_text(encoding="utf-8"))
    assert [len(found[""]["classes"]) for found in data["answers"]] == [2, 2]


def test_a_long_example_leaves_no_exported_page(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match="characters"):
        demo.main([str(run), "a " * 300, "--export", str(tmp_path / "page.html")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(UserError, match="--port"):
        demo.main(["runs/x", "--port", port])


def test_a_port_in_use_is_named_before_any_model_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use: choose another by --port"):
            demo.main([str(tmp_path / "no-run"), "--port", str(port)])


def test_the_page_is_served_to_this_machine_alone() -> None:
    with server.bound(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=re.escape("[demo]'")):
        demo.main(["runs/x"])


def test_the_newest_run_of_either_kind_is_shown(tmp_path: Path, run: Path, tuned: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        models.newest(tmp_path)
    assert models.newest(run.parent) == run
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.yaml").write_text((run / "config.yaml").read_text())
    (tmp_path / run.name).symlink_to(run)
    assert models.newest(tmp_path) == tmp_path / run.name


@pytest.mark.parametrize(("texts", "said"), [(["no such run"], "no such run"), (["tests"], "no model")])
def test_a_path_without_a_model_is_named(
    texts: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=said):
        demo.main([*texts, "--export", str(tmp_path / "page.html")])


def test_a_table_is_kept_until_newer_ones_come_and_goes_by_its_senders_name(
    tmp_path: Path, classifier: Classifier
) -> None:
    tables = server.Tables(tmp_path)
    table = samples.write_csv(tmp_path / "given.csv", 600).read_bytes()
    key = tables.add("../../My table.CSV", table)
    steps = list(tables.classify(key, classifier, samples.CPU))
    assert [step["done"] for step in steps] == [0, 512, 600, 600]
    assert [step["remarks"] for step in steps] == ["", "", "", "600 rows classified"]
    lines = tables.classified(key).read_text().splitlines()
    assert (lines[0], len(lines)) == ("id,text,target,predicted,probability_calm,probability_grim", 601)
    for name, content, said in (
        ("other.csv", b"id,words\n1,a\n", "other.csv"),
        ("picture.png", b"\x89PNG", "picture.png"),
        ("empty.csv", b"", "empty.csv"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            list(tables.classify(tables.add(name, content), classifier, samples.CPU))
        assert str(tmp_path) not in str(caught.value)
    assert tables.classified(key).exists()
    tables.add("x.csv", b"")
    with pytest.raises(UserError, match="send it again"):
        next(tables.classify(key, classifier, samples.CPU))
    assert not tables.classified(key).exists()
