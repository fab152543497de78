"""JSON schemas of payloads: which may be used, and validating against one.

jsonschema-rs binds the validator that the reference uses; both are of the series 0.58, because others differ. 0.40
skips most keywords under an older ``$schema`` and may overflow its stack; in 0.61 a dot of a pattern no longer matches
U+2028, and 1e300 is a multiple of 3. Schemas and payloads are given with sorted keys, because the
reference keeps objects sorted and reports the first violation in that order.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import msgspec

from ergo_capture.adapter.errors import extra_missing

_NUMERIC: Final = frozenset({"number", "integer"})


class SchemaError(ValueError):
    """A schema is not one that the reference takes."""


class Violation(msgspec.Struct, frozen=True):
    """The first violation of a schema by a payload."""

    #: The validator's sentence.
    message: str
    #: The place inside the payload.
    path: tuple[str | int, ...]
    #: The keyword that refuses it.
    keyword: str


class PayloadSchema:
    """A compiled schema of one event kind.

    Args:
        schema: the schema, checked by ``compile_schema`` or not.

    Raises:
        SchemaError: it is not a schema that the reference takes.
        AdapterError: jsonschema-rs is not installed.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._validator, self._error = compile_schema(schema)
        properties = schema.get("properties")
        #: The names that the schema declares, sorted.
        self.properties: tuple[str, ...] = tuple(sorted(properties)) if isinstance(properties, dict) else ()

    def takes(self, payload: dict[str, Any]) -> bool:
        """Return whether a payload is valid."""
        takes: bool = self._validator.is_valid(payload)
        return takes

    def violation(self, payload: dict[str, Any]) -> Violation:
        """Return the first violation by an invalid payload, whose keys are sorted."""
        try:
            self._validator.validate(payload)
        except self._error as error:
            path = tuple(error.instance_path)
            keyword = next((part for part in reversed(error.schema_path) if isinstance(part, str)), "")
            return Violation(error.message, path, keyword)
        return Violation("the validator gives no reason", (), "")


def compile_schema(schema: Any) -> tuple[Any, Any]:
    """Return a validator of draft 2020-12 for a schema, and the error that it raises.

    Raises:
        SchemaError: it is not an object, has a banned keyword, or is not a schema of that draft.
        AdapterError: jsonschema-rs is not installed.
    """
    if not isinstance(schema, dict):
        raise SchemaError("Schema must be a JSON object")
    check_bans(schema)
    try:
        import jsonschema_rs  # noqa: PLC0415 - an optional package, and nothing else pays for it
    except ImportError as error:
        raise extra_missing(error) from error
    try:
        validator = jsonschema_rs.Draft202012Validator(sorted_keys(schema), retriever=_retrieve_nothing)
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(error.message) from error
    return validator, jsonschema_rs.ValidationError


def _retrieve_nothing(uri: str) -> NoReturn:
    raise ValueError(f"schemas may not refer to others: {uri}")


def sorted_keys(value: Any) -> Any:
    """Return a JSON value with the keys of its objects sorted."""
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [sorted_keys(item) for item in value]
    return value


def check_bans(value: Any) -> None:
    """Raise SchemaError if a schema contains, at any place, what the reference bans."""
    if isinstance(value, dict):
        for keyword in ("oneOf", "anyOf"):
            if keyword in value:
                raise SchemaError(f"Schema contains banned keyword: {keyword}")
        if "$ref" in value:
            reference = value["$ref"]
            if not isinstance(reference, str):
                raise SchemaError("Schema $ref must be a string")
            if not reference.startswith("#"):
                raise SchemaError(f"External $ref is forbidden: {reference}")
        if is_object_schema(value):
            if "additionalProperties" not in value:
                raise SchemaError("Schema missing additionalProperties: false")
            if value["additionalProperties"] is not False:
                raise SchemaError("Schema additionalProperties must be false")
        for key in sorted(value):
            check_bans(value[key])
    elif isinstance(value, list):
        for item in value:
            check_bans(item)


def is_object_schema(schema: dict[str, Any]) -> bool:
    """Return whether a schema has properties, or names objects among its types."""
    if "properties" in schema:
        return True
    kind = schema.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def context_type(schema: Any) -> str:
    """Return the context type that a property's values have: Number, Bool, String or Series.

    Raises:
        SchemaError: they have none.
    """
    if not isinstance(schema, dict):
        raise SchemaError("field schema must be an object")
    if "type" not in schema:
        raise SchemaError("field schema is missing 'type'")
    kind = schema["type"]
    if isinstance(kind, list):
        raise SchemaError("union field types are not supported for context materialization")
    if not isinstance(kind, str):
        raise SchemaError("field schema 'type' must be a string")
    if kind in _NUMERIC:
        return "Number"
    if kind in {"boolean", "string"}:
        return "Bool" if kind == "boolean" else "String"
    if kind != "array":
        raise SchemaError(f"unsupported field type '{kind}'")
    if "items" not in schema:
        raise SchemaError("array field requires an 'items' schema")
    items = schema["items"]
    item_type = items.get("type") if isinstance(items, dict) else None
    if isinstance(item_type, str) and item_type in _NUMERIC:
        return "Series"
    raise SchemaError("array field items must be number or integer to materialize as Series")


def required_names(schema: dict[str, Any]) -> list[str]:
    """Return the names that a schema requires."""
    required = schema.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
