from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from configs import Config, Texts, UserError, as_override, dump, help_text, read
from finetune.config import FinetuneConfig
from finetune.heads.linear import LinearHead
from mlm.config import PretrainConfig
from mlm.sweeps.config import SweepConfig

SHIPPED = sorted(Path(__file__).parents[2].glob("configs/pretrain/*.yaml"))


class Steady(Config):
    kind: Literal["steady"] = "steady"
    share: float = Field(1.0, gt=0)


class Falling(Config):
    kind: Literal["falling"] = "falling"
    share: float = Field(0.5, gt=0)
    turns: int = 3


class Section(Config):
    count: int = 8
    rate: float = 0.1
    flag: bool = False
    name: str | None = "plain"
    pair: tuple[float, float] = (0.1, 0.2)
    texts: Texts = ()
    only: dict[str, Texts] = Field(default={})


class Toy(Config):
    section: Section = Section()
    choice: Annotated[Steady | Falling, Field(discriminator="kind")] = Steady()


def write(folder: Path, text: str) -> Path:
    path = folder / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(overrides: Sequence[str], path: Path | None = None, model: type[Config] = Toy) -> str:
    with pytest.raises(UserError) as caught:
        read(model, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


DECODED = [
    ("rate", "1e-4", 1e-4),
    ("rate", "1_000", 1000.0),
    ("rate", "3", 3.0),
    ("count", "1_000", 1000),
    ("count", "-2", -2),
    ("flag", "true", True),
    ("flag", "false", False),
    ("name", "null", None),
    ("name", "no", "no"),
    ("name", "1e-4", "1e-4"),
    ("name", "2020-01-01", "2020-01-01"),
    ("pair", "[1e-3, 2]", (1e-3, 2.0)),
    ("texts", "한국어.txt", ("한국어.txt",)),
    ("texts", "[a, 'b, c']", ("a", "b, c")),
]


@pytest.mark.parametrize(("name", "text", "value"), DECODED)
@pytest.mark.parametrize("place", ["yaml", "override"])
def test_a_value_is_decoded_by_its_declared_type(
    place: str, name: str, text: str, value: object, tmp_path: Path
) -> None:
    if place == "yaml":
        toy = read(Toy, write(tmp_path, f"section:\n  {name}: {text}\n"))
    else:
        toy = read(Toy, None, [f"section.{name}={text}"])
    decoded = getattr(toy.section, name)
    assert decoded == value
    assert type(decoded) is type(value)


def test_defaults_then_yaml_then_overrides_in_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, "section:\n  count: 1\n  rate: 1\n  flag: true\n")
    toy = read(Toy, path, ["section.rate=2", "section.name=a", "section.name=b"])
    assert toy.section == Section(count=1, rate=2.0, flag=True, name="b")
    assert toy.choice == Steady()


def test_a_mapping_in_one_piece_replaces_another_but_not_a_section(tmp_path: Path) -> None:
    path = write(tmp_path, "section:\n  count: 1\n  only: {a: [x], b: [y]}\n")
    assert read(Toy, str(path), ["section.only={}"]).section == Section(count=1)
    assert read(Toy, path, ["section.only={c: z}"]).section.only == {"c": ("z",)}
    assert read(Toy, path, ["section.only.b=z"]).section.only == {"a": ("x",), "b": ("z",)}
    assert read(Toy, path, ["section={rate: 2}"]).section == Section(count=1, rate=2.0, only={"a": ("x",), "b": ("y",)})


@pytest.mark.parametrize("text", ["", "# only a comment\n", "section: {}\n"])
def test_an_empty_file_or_section_changes_nothing(text: str, tmp_path: Path) -> None:
    assert read(Toy, write(tmp_path, text)) == Toy()


def test_a_choice_keeps_its_kind_when_one_of_its_settings_changes() -> None:
    assert read(Toy, None, ["choice.share=0.25"]).choice == Steady(share=0.25)


def test_a_new_kind_drops_the_settings_of_the_former(tmp_path: Path) -> None:
    path = write(tmp_path, "choice:\n  kind: steady\n  share: 0.25\n")
    assert read(Toy, path, ["choice.kind=falling", "choice.turns=5"]).choice == Falling(share=0.5, turns=5)
    assert read(Toy, path, ["choice.kind=steady"]).choice == Steady(share=0.25)


@pytest.mark.parametrize(
    "overrides", [["choice.kind=falling", "choice.share=0.25"], ["choice.share=0.25", "choice.kind=falling"]]
)
def test_a_kind_and_its_settings_may_stand_in_either_order(overrides: list[str]) -> None:
    assert read(Toy, None, overrides).choice == Falling(share=0.25)


def test_a_configuration_is_frozen_and_strict() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Section().count = 3  # type: ignore[misc]
    for values in ({"rate": True}, {"count": True}, {"count": 1.0}, {"rate": "1"}, {"rate": float("nan")}, {"x": 1}):
        with pytest.raises(ValidationError):
            Section(**values)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("section.cuont=1", "section.cuont: | section.count?"),
        ("sektion.count=1", "sektion: | section?"),
        ("choice.sare=1", "choice.sare: | choice.share?"),
        ("choice.turns=1", "choice.turns: | kind, share"),
        ("other=1", "other: | section, choice"),
        ("section.rate=fast", "section.rate = 'fast'"),
        ("section.rate=true", "section.rate = 'true'"),
        ("section.rate=nan", "section.rate = 'nan'"),
        ("section.rate=-inf", "section.rate = '-inf'"),
        ("section.rate=null", "section.rate = None"),
        ("section.rate.x=1", "section.rate = {'x': '1'}"),
        ("section.count=1.5", "section.count = '1.5'"),
        ("section.count=true", "section.count = 'true'"),
        ("section.flag=2", "section.flag = '2'"),
        ("section.pair=[1, true]", "section.pair.1 = 'true'"),
        ("section.pair=[1, nan]", "section.pair.1 = 'nan'"),
        ("section=1", "section = '1'"),
        ("choice.share=0", "choice.share = '0'"),
        ("choice.kind=fallin", "choice.kind | steady, falling"),
        ("choice.kind=null", "choice.kind | steady, falling"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_path(override: str, names: str) -> None:
    refused = refusal([override])
    assert [name for name in names.split(" | ") if name not in refused] == []
    assert refused.endswith("(command line)")


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "section: {cuont: 1}")
    refused = refusal([], path)
    assert "section.cuont" in refused
    assert refused.endswith(f"({path})")


def test_all_mistakes_are_in_one_message() -> None:
    refused = refusal(["section.rate=fast", "section.cuont=1"])
    assert "section.rate = 'fast'" in refused
    assert "section.count?" in refused


@pytest.mark.parametrize("override", ["section.rate", "=3", ".rate=3", "section..rate=3", "section.=3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    refused = refusal([override])
    assert repr(override) in refused
    assert "section.key=value" in refused


@pytest.mark.parametrize(
    "text", ["plain", "[comment]", "{a}", '"quoted"', "", "null", 'it is "so" [x]', "日本🙂\n", "[a\x85b\x7f"]
)
def test_any_text_is_written_as_an_override_and_read_back(text: str) -> None:
    assert read(Toy, None, [f"section.name={as_override(text)}"]).section.name == text
    assert read(Toy, None, [f"section.texts={as_override([text, 'a'])}"]).section.texts == (text, "a")


def test_a_list_that_holds_itself_is_refused() -> None:
    assert "cannot read the value of 'section.texts=[&a [*a]]'" in refusal(["section.texts=[&a [*a]]"])


def test_an_unclosed_list_is_refused() -> None:
    assert "'section.pair=[1, 2'" in refusal(["section.pair=[1, 2"])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"section: [", "YAML"),
        (b"section: !!python/object:os.system x", "YAML"),
        (b"- section", "list"),
        (b"section", "str"),
        (b"section: \xff", "utf-8"),
    ],
)
def test_a_file_that_holds_no_sections_is_refused(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_bytes(content)
    refused = refusal([], path)
    assert name in refused
    assert str(path) in refused


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in refusal([], tmp_path / "none.yaml")
    assert str(tmp_path) in refusal([], tmp_path)


@pytest.mark.parametrize("path", [None, *SHIPPED], ids=lambda path: path.stem if path else "defaults")
def test_a_dumped_configuration_reads_back_equal(path: Path | None, tmp_path: Path) -> None:
    config = read(
        PretrainConfig, path, ["text.source.kind=files", "text.source.paths=[말뭉치/*.txt, 'a: b']", "optim.lr=1e-7"]
    )
    assert read(PretrainConfig, write(tmp_path, dump(config))) == config


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ("model.encoder.width=100 model.encoder.heads=3", "model.encoder: | width 100 | heads 3"),
        ("model.encoder.width=36", "model.encoder: | rotary | 9"),
        (
            "model.encoder.positions.kind=sinusoidal model.encoder.width=9 model.encoder.heads=1",
            "model.encoder: | sinusoidal | width | 9",
        ),
        ("schedule.warmup=1", "schedule.warmup = | less than 1"),
        ("schedule.warmup=0.8", "schedule: | warmup + decay | 1.1"),
        ("schedule.kind=power schedule.warmup=0", "schedule: | power | warmup"),
        ("masking.mask_share=0.95", "masking: | mask_share + random_share | 1.05"),
        ("data.row_length=64", "evaluation.window_bytes = 96 | data.row_length = 64"),
        ("optim.betas=[0.9,1.5]", "optim.betas.1 = '1.5'"),
        ("optim.kind=schedule_free optim.betas=[0,0.9]", "optim.betas.0 = '0'"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(overrides: str, names: str) -> None:
    refused = refusal(overrides.split(), model=PretrainConfig)
    assert [name for name in names.split(" | ") if name not in refused] == []


def options(section: Config | type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Yield every field with its path and default, of every choice, however deep; an instance's values are defaults."""
    model = section if isinstance(section, type) else type(section)
    for name, field in model.model_fields.items():
        default = field.default if isinstance(section, type) else getattr(section, name)
        yield prefix + name, field, default
        pending: list[Any] = [field.annotation]
        while pending:
            annotation = pending.pop()
            pending += get_args(annotation)
            if isinstance(annotation, type) and issubclass(annotation, Config):
                yield from options(default if isinstance(default, annotation) else annotation, f"{prefix}{name}.")


COMMANDS = [
    PretrainConfig(),
    FinetuneConfig(),
    FinetuneConfig(head=LinearHead()),
    SweepConfig(search={"optim.lr": ("1e-3",)}),
]


@pytest.mark.parametrize("config", COMMANDS, ids=lambda config: type(config).__name__)
def test_the_help_names_every_option_with_its_default_and_meaning(config: Config) -> None:
    shown = help_text(type(config))
    flat = " ".join(shown.split())
    for path, field, default in options(config):
        assert field.description or path.endswith(".kind"), path
        if isinstance(default, Config) or f"\n  {path}." in shown:
            assert f"{path}: " in flat or f"{path}.kind (" in flat
        elif not path.endswith(".kind"):
            listed = "[" + ", ".join(map(str, default)) + "]" if isinstance(default, tuple) else default
            said = "required" if field.is_required() else f"default {'null' if listed is None else listed}"
            lines = [line for line in shown.splitlines() if line.startswith(f"  {path}  (")]
            assert any(line.endswith(f"; {said})") for line in lines)
        assert " ".join((field.description or "").split()) in flat


def test_the_help_names_every_choice_with_its_kind() -> None:
    shown = help_text(Toy)
    assert "choice.kind  (steady | falling; default steady)" in shown
    assert "choice.kind=falling" in shown
    assert "  choice.turns  (int; default 3)" in shown


def test_the_help_shows_types_without_python_syntax() -> None:
    shown = help_text(PretrainConfig)
    assert "  masking.unit  (token | word | span; default token)" in shown
    assert "  masking.final_rate  (float | null; default null)" in shown
    assert "  optim.betas  (list; default [0.9, 0.98])" in shown


def test_runs_that_name_no_second_task_stay_readable_and_one_that_names_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("detection: null\nname: before\n")
    assert read(PretrainConfig, path) == read(PretrainConfig, None, ["name=before"])
    path.write_text("detection: {begin: 0.5}\n")
    with pytest.raises(UserError, match="unknown key detection"):
        read(PretrainConfig, path)
