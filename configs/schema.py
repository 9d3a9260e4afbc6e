"""The JSON Schema of configurations, by which editors complete and check the YAML files that `configs.read` takes."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from configs import Config

WHOLE = r"^[-+]?[0-9][0-9_]*$"
"""An integer as `read` decodes it: YAML 1.2 takes 1_000 for a text."""
DECIMAL = r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$"
"""A number as `read` decodes it: YAML 1.1 takes 1e-4 for a text."""


class _Written(GenerateJsonSchema):
    """Describes scalars as they are written: each is text in YAML, which `read` decodes by the declared type.

    Editors show the `patternErrorMessage`.
    """

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        written = {"type": ["integer", "string"], "pattern": WHOLE, "patternErrorMessage": "Write a whole number."}
        return super().int_schema(schema) | written

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        written = {"type": ["number", "string"], "pattern": DECIMAL, "patternErrorMessage": "Write a number."}
        return super().float_schema(schema) | written

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        return super().str_schema(schema) | {"type": ["string", "number", "boolean"]}


def json_schema(models: Sequence[type[Config]]) -> dict[str, Any]:
    """Return a schema of YAML files for any of `models`, each of which stands by its name under `$defs`.

    A key that is left out has its default, so a `kind` is required only where it is another.
    """
    _, schema = models_json_schema([(model, "validation") for model in models], schema_generator=_Written)
    definitions: dict[str, Any] = schema["$defs"]
    for node in list(_nodes(definitions)):
        if isinstance(node.get("description"), str):
            node["description"] = " ".join(node["description"].split())
        if "discriminator" in node:
            kinds = node.pop("discriminator")["mapping"]
            assumed = kinds.get(node["default"]["kind"]) if "default" in node else None
            node |= {"properties": {"kind": {"enum": list(kinds)}}, "anyOf": node.pop("oneOf")}
            for choice in node["anyOf"]:
                if "default" in node and choice["$ref"] != assumed:
                    choice["required"] = ["kind"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in models],
        "$defs": definitions,
    }


def _nodes(values: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping among nested values."""
    if isinstance(values, dict):
        yield values
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _nodes(value)
