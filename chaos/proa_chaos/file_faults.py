"""The keys under `faults`: who is hit, and what is done to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proa.spec.readers import (
    NEEDED,
    Field,
    Needed,
    Reader,
    Rule,
    boolean,
    integer,
    list_of,
    number,
    one_of,
    table,
    text,
)
from proa.spec.section import Section
from proa_chaos.durations import duration
from proa_chaos.experiment import (
    ACTIONS,
    CHAOS_MESH,
    MODES,
    PARTS,
    PROA,
    SITES,
    Choice,
    Expression,
    Fault,
    Parameters,
    Selector,
)

# In-band faults live at most so long (`proa.worker.faults`); the others keep to it too.
FAULT_S_MAX = 600.0
NAMES_MAX = 256
MESH_ACTIONS = ("slow", "partition", "kill", "cpu-hog")  # those that Chaos Mesh knows, too

_PERCENT = ("fixed-percent", "random-max-percent")


def mapping_of(reader: Reader[Any], limit: int) -> Reader[Mapping[str, Any]]:
    """A mapping of any keys to values of one kind."""

    def read(section: Section) -> Mapping[str, Any]:
        keys = section.keys()
        if len(keys) > limit:
            raise section.error(f"has {len(keys)} keys; the limit is {limit}")
        found = {}
        for key in keys:
            child = section.child(key, required=True)
            assert child is not None
            found[key] = reader(child)
        return found

    return Reader(read, {"type": "object", "additionalProperties": reader.schema})


NAMES = list_of(text, NAMES_MAX)


# --- who is hit


def _expression(section: Section, found: Expression) -> None:
    if (found.operator in ("In", "NotIn")) != bool(found.values):
        raise section.error("In and NotIn need values, Exists and DoesNotExist take none")


EXPRESSION = table(
    Expression,
    Field("key", text, NEEDED, "label"),
    Field("operator", one_of(("In", "NotIn", "Exists", "DoesNotExist")), NEEDED, "how"),
    Field("values", NAMES, (), "of the label"),
    rules=(Rule(_expression, {}),),
)


def _selector(
    namespaces: tuple[str, ...],
    label_selectors: Mapping[str, str],
    expression_selectors: tuple[Expression, ...],
    pods: Mapping[str, tuple[str, ...]],
    nodes: tuple[str, ...],
) -> Selector:
    return Selector(namespaces, label_selectors, expression_selectors, pods, nodes)


SELECTOR = table(
    _selector,
    Field("namespaces", NAMES, (), "locally there is one, `local`"),
    Field("labelSelectors", mapping_of(text, NAMES_MAX), {}, "labels and their values"),
    Field("expressionSelectors", list_of(EXPRESSION, NAMES_MAX), (), "conditions on labels"),
    Field("pods", mapping_of(NAMES, NAMES_MAX), {}, "names by namespace"),
    Field("nodes", NAMES, (), "failure domains"),
)


def _value(section: Section, mode: str, value: int | None) -> int:
    if (value is None) != (mode in ("one", "all")):
        raise section.error(f"mode {mode!r} {'takes no' if value is not None else 'needs a'} value")
    if mode in _PERCENT and value is not None and value > 100:
        raise section.error(f"value {value} is out of range; percents go from 1 to 100")
    return value or 0


# --- what is done

_PROBABILITY = Field("probability", number(0.0001, 1.0), 1.0, "share of the calls that it hits")
_PROGRAM = Field(
    "program", text, "", "workers: deployed, parity.0 ...; encoder, decoder: the method; all"
)
_DELAY_S = Field("delay", duration(0.001, FAULT_S_MAX), NEEDED, "added to every call")


def _parameters(**values: Any) -> Parameters:
    if "target" in values:
        values["site"] = values.pop("target")
    if "delay" in values:
        values["delay_ms"] = round(values.pop("delay") * 1000)
    return Parameters(**values)


PARAMETERS: Mapping[str, Reader[Parameters]] = {
    "slow": table(_parameters, _DELAY_S, _PROBABILITY, _PROGRAM),
    "pause": table(
        _parameters,
        Field("how", one_of(("calls", "process")), "calls", "calls block, or all of it stands"),
        _PROGRAM,
    ),
    "kill": table(
        _parameters,
        Field("how", one_of(("delete", "evict")), "delete", "in a cluster: evict asks its budgets"),
    ),
    "drain": table(
        _parameters,
        Field("cordon", boolean, False, "in a cluster: nothing new comes; takes rights on nodes"),
    ),
    "error": table(_parameters, _PROBABILITY, _PROGRAM),
    "drop": table(_parameters, _PROBABILITY, _PROGRAM),
    "partition": table(_parameters),
    "cpu-hog": table(
        _parameters,
        Field("workers", integer(1, 1024), 1, "busy processes"),
        Field("load", integer(1, 100), 100, "percent of a CPU for each"),
    ),
    "bitflip": table(
        _parameters,
        Field("target", one_of(SITES), SITES[0],
              "whose bits: answers, weights in memory, accumulators of checked products; rows that"
              " a shard holds"),
        Field("bits", integer(1, 4096), 1, "so many at a time"),
        _PROBABILITY,
        _PROGRAM,
    ),
    "kill-shard": table(
        _parameters, Field("what", one_of(PARTS), PARTS[0], "agent, server, or both of a shard")
    ),
    "stale-disk": table(_parameters),
}  # fmt: skip


def _values(**values: Any) -> dict[str, Any]:
    return values


def _peer(section: Section) -> Choice:
    found = _CHOICE(section)
    return Choice(found["selector"], found["mode"], _value(section, found["mode"], found["value"]))


# Chaos Mesh writes this number as a string.
COUNT = Reader(
    integer(1, 100_000).read,
    {"type": ["integer", "string"], "minimum": 1, "maximum": 100_000, "pattern": "^[0-9]+$"},
)
_CHOICE_FIELDS: tuple[Field[Any], ...] = (
    Field("selector", SELECTOR, NEEDED, "who may be hit"),
    Field("mode", one_of(MODES), "one", "how many of them"),
    Field("value", COUNT, None, "a number or percent, as mode says"),
)
_CHOICE = table(_values, *_CHOICE_FIELDS)
PEER: Reader[Choice | None] = Reader(_peer, _CHOICE.schema)


def _fault_table(action: str) -> Reader[dict[str, Any]]:
    default: Parameters | Needed = NEEDED if action == "slow" else Parameters()
    fields: list[Field[Any]] = [
        Field("name", text, NEEDED, "of the fault, in timeline and journal"),
        Field("action", one_of((action,)), NEEDED, "what is done"),
        *_CHOICE_FIELDS,
        Field("at", duration(0.0, FAULT_S_MAX), 0.0, "when in the phase `during`"),
        Field("duration", duration(0.01, FAULT_S_MAX), None, "left out: to the end of the phase"),
        Field("every", duration(0.05, FAULT_S_MAX), None, "chosen anew so often"),
        Field("parameters", PARAMETERS[action], default, "of the action"),
    ]
    if action in MESH_ACTIONS:
        fields.append(Field("backend", one_of((PROA, CHAOS_MESH)), PROA, "who acts it out"))
    if action == "partition":
        fields.append(Field("target", PEER, NEEDED, "the other side"))
    return table(_values, *fields)


_FAULT_TABLES = {action: _fault_table(action) for action in ACTIONS}


def _fault(section: Section) -> Fault:
    action = section.child("action", required=True)
    assert action is not None
    found = _FAULT_TABLES[one_of(ACTIONS)(action)](section)
    duration_s = found["duration"]
    if found["action"] in ("kill", "kill-shard") and duration_s is None:
        duration_s = 0.0
    if found["every"] is not None and duration_s == 0.0:
        raise section.error("a kill with `every` needs a duration")
    return Fault(
        name=found["name"],
        action=found["action"],
        choice=Choice(
            found["selector"], found["mode"], _value(section, found["mode"], found["value"])
        ),
        at_s=found["at"],
        duration_s=duration_s,
        every_s=found["every"],
        parameters=found["parameters"],
        peer=found.get("target"),
        backend=found.get("backend", PROA),
    )


FAULT = Reader(_fault, {"anyOf": [_FAULT_TABLES[action].schema for action in ACTIONS]})
