"""Every node: its schema and its execute agree, and it explains itself."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from harness.schemas import every_input, pack_nodes


@pytest.fixture(scope="module")
def nodes(host) -> list[type[Any]]:
    return pack_nodes()


@pytest.fixture
def complaints():
    """Collects what is wrong with any node, so that one run shows it all."""
    found: list[str] = []
    yield found
    assert not found, "\n".join(found)


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def test_there_are_nodes_and_their_ids_are_unique(nodes):
    ids = [node.GET_SCHEMA().node_id for node in nodes]
    assert ids
    assert len(set(ids)) == len(ids)


def test_inputs_are_the_parameters_of_execute(nodes, complaints):
    for node in nodes:
        schema, taken = node.GET_SCHEMA(), parameters(node.execute)
        declared = {item.id: item for item in schema.inputs}
        if declared.keys() != taken.keys():
            complaints.append(
                f"{schema.node_id}: inputs without parameter {sorted(declared.keys() - taken.keys())}, "
                f"parameters without input {sorted(taken.keys() - declared.keys())}"
            )
        for name, item in declared.items():
            if item.optional and name in taken and taken[name].default is inspect.Parameter.empty:
                complaints.append(f"{schema.node_id}: optional input {name} needs a default in execute")


def test_checks_take_the_dynamic_inputs_that_the_host_always_passes(nodes, complaints):
    """As keyword-only parameters: an input that a check asks for by position is one that its message is shown at."""
    from comfy_api.latest import io

    for node in nodes:
        if "validate_inputs" not in vars(node):
            continue
        taken = parameters(node.validate_inputs)
        for item in node.GET_SCHEMA().inputs:
            found = taken.get(item.id)
            if isinstance(item, io.DynamicCombo.Input | io.Autogrow.Input) and (
                found is None or found.kind is not inspect.Parameter.KEYWORD_ONLY
            ):
                complaints.append(f"{node.GET_SCHEMA().node_id}: validate_inputs needs keyword-only {item.id}")


@pytest.mark.parametrize("hook", ["validate_inputs", "check_lazy_status", "fingerprint_inputs"])
def test_hooks_take_only_declared_inputs(nodes, complaints, hook):
    for node in nodes:
        if hook not in vars(node):
            continue
        declared = {item.id for item in node.GET_SCHEMA().inputs}
        named = {
            name
            for name, parameter in parameters(getattr(node, hook)).items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        # ComfyUI hands the types of linked inputs to a validator that asks for them under this name.
        unknown = named - declared - ({"input_types"} if hook == "validate_inputs" else set())
        if unknown:
            complaints.append(f"{node.GET_SCHEMA().node_id}.{hook} takes {sorted(unknown)}, which are no inputs")


def test_ids_and_categories_carry_the_packs_name(nodes, complaints):
    for node in nodes:
        schema = node.GET_SCHEMA()
        if not schema.node_id.startswith("RealISR_") or not schema.node_id.isidentifier():
            complaints.append(f"{schema.node_id}: ids are RealISR_<Name>, letters and digits")
        if not schema.category.startswith("RealISR/"):
            complaints.append(f"{schema.node_id}: category is {schema.category!r}")


def test_nodes_explain_themselves(nodes, complaints):
    for node in nodes:
        schema = node.GET_SCHEMA()
        complaints += [
            f"{schema.node_id}: no {field}"
            for field in ("display_name", "description", "search_aliases")
            if not getattr(schema, field)
        ]


def test_every_input_and_output_has_a_tooltip(nodes, complaints):
    for node in nodes:
        schema = node.GET_SCHEMA()
        complaints += [
            f"{schema.node_id}: input {item.id} has no tooltip"
            for item in every_input(schema.inputs)
            if not item.tooltip
        ]
        complaints += [
            f"{schema.node_id}: output {number} ({item.display_name}) has no tooltip"
            for number, item in enumerate(schema.outputs)
            if not item.tooltip
        ]


def test_defaults_are_values_the_widget_allows(nodes, complaints):
    for node in nodes:
        for item in every_input(node.GET_SCHEMA().inputs):
            default, options = getattr(item, "default", None), getattr(item, "options", None)
            low, high = getattr(item, "min", None), getattr(item, "max", None)
            if default is None:
                continue
            too_low = low is not None and default < low
            too_high = high is not None and default > high
            if too_low or too_high or (isinstance(options, list) and options and default not in options):
                complaints.append(f"{node.GET_SCHEMA().node_id}: default of {item.id} is {default!r}")
