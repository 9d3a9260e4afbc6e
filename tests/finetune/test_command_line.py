"""The commands of the heads: the same command, each with its own head."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs import UserError, read
from finetune import cnn_head, linear_head
from finetune.config import FinetuneConfig


def resolved(
    main: Callable[[list[str]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> FinetuneConfig:
    """Return the configuration that a command prints with --print-config."""
    main([*words, "--print-config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    return read(FinetuneConfig, printed)


def test_a_recipe_without_a_kind_gets_the_head_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("head:\n  dropout: 0.25\n")
    for main, kind in ((cnn_head.main, "cnn"), (linear_head.main, "linear")):
        assert resolved(main, tmp_path, capsys).head.kind == kind
        for words in ([str(recipe)], [str(recipe), f"head.kind={kind}"]):
            head = resolved(main, tmp_path, capsys, *words).head
            assert (head.kind, head.dropout) == (kind, 0.25)


def test_a_recipe_or_an_override_that_names_another_head_is_a_mistake(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("head:\n  kind: linear\n")
    for words in ([str(recipe)], ["head.kind=linear"]):
        with pytest.raises(UserError, match=r"head\.kind.*linear.*cnn") as caught:
            cnn_head.main([*words, "--print-config"])
        assert "\n" not in str(caught.value)


def test_help_shows_the_options_of_the_commands_own_head(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ((cnn_head.main, "head.widths", "head.pooling"), (linear_head.main, "head.pooling", "head.widths"))
    for main, own, other in commands:
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["--help"])
        shown = capsys.readouterr().out
        assert own in shown
        assert other not in shown
