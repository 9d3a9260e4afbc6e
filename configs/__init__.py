"""Read recipes strictly: YAML and overrides become frozen, validated configurations.

Every configuration class derives from `Config` and stands beside the component it configures; its fields
are documented by a string under each. A choice between components is a union of such classes, told apart by
`kind`: only the chosen component's settings exist. This package imports no other package of the project.
"""

import difflib
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined


class UserError(ValueError):
    """A user's mistake: one line with the fault, the place and the remedy."""

    def __init__(self, message: str) -> None:
        """Escape the unprintable characters of `message`, which could break the line or control the terminal."""
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class Config(BaseModel):
    """A frozen, keyword-only, strictly typed configuration: no unknown key, no boolean for a number, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def as_list(value: Any) -> Any:
    """Return a text as a list of one; validators of lists call this first, so that one is written without a list."""
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(as_list, json_schema_input_type=str | tuple[str, ...])]
"""One or several texts; a single one may be written without a list."""

_LONGEST_SHOWN = 200
"""Characters of a value in a message."""
_NULL = "", "null"
"""Values of an override that are null."""
_YAML = "[", "{", '"'
"""Beginnings of an override's value that is read as YAML."""

AnyConfig = TypeVar("AnyConfig", bound=Config)


class _TextLoader(yaml.SafeLoader):
    """A YAML loader that keeps every scalar but null as text, to be decoded by the declared type.

    YAML 1.1 would read `1e-4` as a string, `no` as a boolean and `1_000` as a number.
    """


def _mapping_without_repeats(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [loader.construct_object(key) for key, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"{name} appears twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_TextLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)
_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(model: type[AnyConfig], path: Path | str | None = None, overrides: Sequence[str] = ()) -> AnyConfig:
    """Return `model`'s defaults, changed by the YAML file at `path`, then by `section.key=value` overrides.

    Raise a UserError if a file, key, type or value is wrong; the message names the key's path and the nearest key.
    """
    values = model().model_dump(mode="json")
    origin, path = "command line", None if path is None else Path(path)
    if path is not None:
        origin = f"{path} and command line" if overrides else str(path)
        _merge(values, _load(path), [model])
    _merge(values, _overrides(overrides), [model])
    check_text(values)
    try:
        return model.model_validate(values, strict=False)
    except ValidationError as error:
        raise UserError("; ".join(_explain(detail, model) for detail in error.errors()) + f" ({origin})") from None


def check_text(
    values: Any, name: str = "", *, mend: str = "rename the file or folder (a pattern may match it)"
) -> None:
    """Raise a UserError if a text among nested values holds bytes that are no UTF-8, as a file's name and a prompt can.

    Such a text fits no tokenizer, and no YAML, JSON or TensorBoard file, in which a run records it.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            check_text(value, f"{name}.{key}" if name else str(key), mend=mend)
    elif isinstance(values, list | tuple):
        for value in values:
            check_text(value, name, mend=mend)
    elif isinstance(values, str) and not values.isascii() and any("\ud800" <= letter <= "\udfff" for letter in values):
        shown = values if len(values) <= _LONGEST_SHOWN else f"{values[:_LONGEST_SHOWN]}..."
        raise UserError(f"{name} = {shown}: this is not UTF-8: {mend}")


def listed(names: Iterable[object], most: int = 5) -> str:
    """Return the first `most` names for a message, and the number of the others."""
    given = list(map(str, names))
    return ", ".join(given[:most]) + (f" and {len(given) - most:,} more" if len(given) > most else "")


def dump(config: Config) -> str:
    """Return `config` as YAML that `read` turns back into an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dumped(text: str) -> dict[str, Any]:
    """Return the settings in what `dump` returned."""
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def as_override(value: Any) -> str:
    """Return a value as it is written behind `section.key=`; `read` takes it back."""
    if isinstance(value, str):
        if value not in _NULL and not value.startswith(_YAML):
            return value
        quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9)
        return quoted.rstrip("\n")
    if isinstance(value, list | tuple) and all(
        isinstance(one, str) and re.fullmatch(r"[\w.+-]+", one) and one not in _NULL for one in value
    ):
        return f"[{', '.join(value)}]"  # plain texts need no quotes
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def changed(path: Path, **values: Any) -> str:
    """Return the YAML file at `path` with other values of some sections."""
    text: str = yaml.safe_dump(
        {**yaml.safe_load(path.read_text(encoding="utf-8")), **values}, sort_keys=False, allow_unicode=True
    )
    return text


def section_names(path: Path) -> set[str]:
    """Return the names of the sections of a YAML file; none for a file that holds no sections."""
    try:
        return set(_load(path))
    except UserError:
        return set()


def help_text(model: type[Config]) -> str:
    """Describe every option of `model`: its path, type, default, meaning and unit."""
    return "\n".join(_help_lines(model(), ""))


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader)
    except FileNotFoundError:
        raise UserError(f"no such configuration file: {path} (an option is written section.key=value)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration file {path}: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections with keys (such as 'optim:'), not a {type(values).__name__}")
    return values


def _overrides(overrides: Sequence[str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        names = path.split(".")
        if not equals or not all(names):
            raise UserError(f"cannot read the override {override!r}: write section.key=value, such as optim.lr=3e-4")
        check_text(text, path)
        value: Any = None if text in _NULL else text
        if text.startswith(_YAML):
            try:
                value = yaml.load(text, Loader=_TextLoader)
                check_text(value, path)  # a list may hold itself
            except (yaml.YAMLError, RecursionError):
                raise UserError(
                    f"cannot read the value of {override!r}: write a list as {path}=[a, b], and a text that begins with"
                    f" a bracket or a quote in double quotes, for a shell as '{path}=\"[a]\"'"
                ) from None
            value = _Whole(value) if isinstance(value, dict) else value
        for name in reversed(names[1:]):
            value = {name: value}
        _merge(merged, {names[0]: value}, None)
    return merged


class _Whole(dict[str, Any]):
    """A mapping that is written in one piece, as {a: b}: it replaces another one, unless that is a section."""


def _merge(values: dict[str, Any], change: Mapping[str, Any], models: Sequence[type[Config]] | None) -> None:
    """Merge `change` into `values` in place; a section whose kind changes loses the settings of its former kind.

    The values are those of one of `models`; None: of any, so that each mapping may be a section.
    """
    for name, new in change.items():
        old = values.get(name)
        fields = [of.model_fields[name] for of in models or () if name in of.model_fields]
        sections = None if models is None else [choice for field in fields for choice in _choices(field.annotation)]
        replaces = isinstance(new, _Whole) and sections == []
        if isinstance(old, dict) and isinstance(new, dict) and not replaces and not _kinds_differ(old, new):
            _merge(old, new, sections)
        else:
            values[name] = new


def _kinds_differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "kind" in old and "kind" in new and old["kind"] != new["kind"]


def _choices(annotation: Any) -> list[type[Config]]:
    """Return the configuration classes that a field may hold: none for a plain value, one for a section."""
    found = [annotation] if isinstance(annotation, type) and issubclass(annotation, Config) else []
    return found + [choice for argument in get_args(annotation) for choice in _choices(argument)]


def _kind(model: type[Config]) -> str:
    return str(model.model_fields["kind"].default)


def _explain(detail: ErrorDetails, model: type[Config]) -> str:
    """Return one validation error as a sentence with the key's path, the fault and the remedy."""
    names: list[str] = []
    current = [model]
    for place, part in enumerate(detail["loc"], start=1):
        tagged = [choice for choice in current if "kind" in choice.model_fields and _kind(choice) == part]
        fields = current[0].model_fields if current else {}
        if str(part).startswith("<"):  # the tag of a union whose classes have no kind
            continue
        if isinstance(part, int):  # a place in a list, whose values the same classes hold
            names.append(str(part))
        elif len(current) > 1 and tagged:
            current = tagged
        else:
            names.append(str(part))
            if str(part) in fields:
                current = _choices(fields[str(part)].annotation)
            elif place == len(detail["loc"]) and detail["type"] == "extra_forbidden":
                near = difflib.get_close_matches(str(part), fields, n=1)
                hint = f"did you mean {'.'.join([*names[:-1], near[0]])}?" if near else f"known: {', '.join(fields)}"
                return f"unknown key {'.'.join(names)}: {hint}"
    name = ".".join(names)
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{name}.kind must be one of {', '.join(_kind(choice) for choice in current)}"
    if detail["type"] == "missing":
        return f"{name} is required"
    message = detail["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list, such as [a, b]")
    message = message.replace("Tuple", "List").replace(" after validation", "")
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a section, such as {key: value}", message)
    if detail["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name} = {detail['input']!r}: {message[:1].lower()}{message[1:]}"


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return "list"
    if get_args(annotation):
        return " | ".join(_type_name(argument) for argument in get_args(annotation))
    return "null" if annotation is type(None) else str(getattr(annotation, "__name__", annotation))


def _help_lines(section: Config | type[Config], prefix: str) -> Iterator[str]:
    """Yield lines on a section's options; an instance gives its values as defaults, a class those of its fields."""
    model = section if isinstance(section, type) else type(section)
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True) if isinstance(section, type) else getattr(section, name)
        default = None if default is PydanticUndefined else default
        choices, path = _choices(field.annotation), f"{prefix}{name}"
        described = " ".join((field.description or "").split())
        meaning = textwrap.fill(described, 110, initial_indent="      ", subsequent_indent="      ")
        if not choices and name != "kind":
            shown = "required" if field.is_required() else f"default {_shown(default)}"
            yield f"  {path}  ({_type_name(field.annotation)}; {shown})\n{meaning}"
        elif len(choices) == 1:
            yield "\n" + textwrap.fill(f"{path}:  {described}", 110, subsequent_indent="      ")
            yield from _help_lines(default if isinstance(default, Config) else choices[0], f"{path}.")
        elif choices:
            kinds = " | ".join(_kind(choice) for choice in choices)
            shown = "required" if default is None else f"default {default.kind}"
            yield f"\n  {path}.kind  ({kinds}; {shown})\n{meaning}"
            for choice in choices:
                yield f"   {path}.kind={_kind(choice)}: {' '.join((choice.__doc__ or '').split())}"
                yield from _help_lines(default if isinstance(default, choice) else choice, f"{path}.")


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return "[" + ", ".join(map(str, default)) + "]"
    return "null" if default is None else str(default)
