"""The spec file as JSON Schema draft-07, generated from the tables that the loader reads with.

What it takes the loader takes, but for what no simple schema says: the shape's number of elements,
tensor names that differ, a port beyond 65535, and parity programs that are too few for k and r.
It is stricter in one thing: YAML is read as text, so the loader takes "2" for 2 and true for a
file name; the schema, meant for values that passed through JSON, does not.
"""

from __future__ import annotations

import json
from typing import Any

from proa.spec.tables import CODED_MODEL, SPEC

DRAFT = "http://json-schema.org/draft-07/schema#"


def coded_model_schema() -> dict[str, Any]:
    """The schema of a whole CodedModel file."""
    title = {"$schema": DRAFT, "title": "CodedModel"}
    return {**title, **_copy(CODED_MODEL.schema)}


def spec_schema() -> dict[str, Any]:
    """The schema of the part under `spec`, to be put into another schema: it has no $ref."""
    return _copy(SPEC.schema)


def _copy(schema: Any) -> dict[str, Any]:
    found = json.loads(json.dumps(schema))
    assert isinstance(found, dict)
    return found
