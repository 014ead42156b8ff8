"""Write the parts of the documentation that are made from the code: ``tools/reference.py [--check]``.

A page holds a part between ``<!-- made by tools/reference.py: NAME -->`` and ``<!-- end -->``. What is described is
what is installed, so run it in the development environment, which has every plugin of the repository.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rift_core.backend import CpuFeatures
from rift_core.capabilities import CAPABILITIES
from rift_core.catalog import Catalog
from rift_core.cli import group
from rift_core.config_model import ARRAYS, SINGLE, configuration_schema
from rift_core.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_core.isa import Register
    from rift_core.isa_debug import BitField, DebugView

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/configuration.md", "docs/capabilities.md", "docs/command-line.md", "docs/registers.md")
_PART = re.compile(r"(<!-- made by tools/reference\.py: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


_HEXADECIMAL = ("port", "doorbell", "base")
"""Keys whose numbers people write that way."""


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").strip()


# -- configuration ---------------------------------------------------------------------------------


def configuration() -> str:
    """Every table that the configuration may have, in the order of the schema."""
    schema = configuration_schema(Catalog.installed())
    parts = []
    for table, shape in schema["properties"].items():
        heading = f"[[{table}]]" if shape.get("type") == "array" else f"[{table}]"
        models = list(_models(shape.get("items", shape), schema))
        names = [_chosen_by(model) for model in models]
        if any(names) or table in SINGLE or table in ARRAYS:
            plugins = {name: model for name, model in zip(names, models, strict=True) if name not in ("", "auto")}
            parts.append(_plugin_tables(heading, shape, plugins))
        else:
            parts.append(f"## `{heading}`\n\n{_intro(models[0], table)}\n\n{_keys(models[0])}")
    return "\n".join(parts)


def _plugin_tables(heading: str, shape: dict[str, Any], models: dict[str, dict[str, Any]]) -> str:
    installed = ", ".join(f"`{name}`" for name in models) or "none"
    text = f"## `{heading}`\n\n{shape.get('description', '')} Installed: {installed}.\n"
    for name, model in models.items():
        text += f'\n### `{heading}` with `name = "{name}"`\n\n{model["description"]}.\n\n{_keys(model)}'
    return text


def _models(shape: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The models that a shape may be, whatever unions they stand in."""
    if "$ref" in shape:
        yield schema["$defs"][shape["$ref"].rpartition("/")[2]]
    for union in ("anyOf", "oneOf"):
        for choice in shape.get(union, ()):
            yield from _models(choice, schema)


def _chosen_by(model: dict[str, Any]) -> str:
    """The ``name`` that chooses a plugin's table; "" for a table of core's own."""
    return str(model["properties"].get("name", {}).get("const", ""))


def _intro(model: dict[str, Any], table: str) -> str:
    words = re.sub(rf"^`\[+{table}\]+`: ", "", model.get("description", "").replace("``", "`"))
    return words[:1].upper() + words[1:]


def _keys(model: dict[str, Any]) -> str:
    rows = [
        f"| `{key}` | {cell(_type(value))} | {cell(_default(key, value))} | {cell(value.get('description', ''))} |"
        for key, value in model["properties"].items()
        if "const" not in value
    ]
    if not rows:
        return "It has no keys.\n"
    return "\n".join(["| key | takes | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _type(value: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "enum" in value:
        return " or ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    choices = [one for one in value.get("anyOf", ()) if one.get("type") != "null"]
    if choices:
        if [one.get("type") for one in choices] == ["integer", "string"] and "pattern" in choices[1]:
            return "size" if "A-Za-z" in choices[1]["pattern"] else f"address{_bounds(choices[0])}"
        return " or ".join(dict.fromkeys(_type(one) for one in choices))
    kind = str(value.get("type", "anything"))
    if kind == "array":
        return f"array: {_type(value['items'])}" if "items" in value else "array"
    if kind == "string" and value.get("format") == "path":
        return "path"
    if kind in ("integer", "number"):
        return kind + _bounds(value)
    return kind


def _bounds(value: dict[str, Any]) -> str:
    low = value.get("minimum", value.get("exclusiveMinimum"))
    high = value.get("maximum", value.get("exclusiveMaximum"))
    words = []
    if low is not None:
        words.append(f"{'above' if 'exclusiveMinimum' in value else 'from'} {_number(low)}")
    if high is not None:
        words.append(f"{'below' if 'exclusiveMaximum' in value else 'to'} {_number(high)}")
    limits = " ".join(words)
    if "multipleOf" in value:
        limits += f", a multiple of {_number(value['multipleOf'])}"
    return f" {limits}" if limits else ""


def _number(number: float) -> str:
    if isinstance(number, float):
        return f"{number:g}"
    power = abs(number).bit_length() - 1
    if power >= 31 and abs(number) == 1 << power:
        return f"{'-' if number < 0 else ''}2^{power}"
    return hex(number) if abs(number) > 0xFFFF else str(number)


def _default(key: str, value: dict[str, Any]) -> str:
    if "default" not in value:
        return "required"
    default = value["default"]
    if default is None:
        return "absent"
    if _type(value) == "size":
        return f'`"{format_size(default).replace(" ", "")}"`'
    if isinstance(default, int) and not isinstance(default, bool):
        return f"`{default:#x}`" if key in _HEXADECIMAL else f"`{_number(default)}`"
    return f"`{json.dumps(default)}`"


# -- capabilities ------------------------------------------------------------------------------------


def capabilities() -> str:
    """The table of ``rift_core.capabilities``."""
    rows = [f"| `{name}` | {cell(meaning)} |" for name, meaning in CAPABILITIES.items()]
    return "\n".join(["| name | what it says |", "| --- | --- |", *rows, ""])


# -- registers ---------------------------------------------------------------------------------------


def registers() -> str:
    """What debuggers see of each ISA's register table, part by part of its target description."""
    parts = []
    for entry in Catalog.installed().of_kind("isa"):
        isa = entry.module.rift_isa(entry.info.config(), CpuFeatures())
        parts.append(f"## {isa.name}\n")
        shown: dict[str, list[tuple[DebugView, Register]]] = {}
        for register in isa.registers:
            if register.debug is not None:
                shown.setdefault(register.debug.feature, []).append((register.debug, register))
        for feature, rows in shown.items():
            lines = [_register_row(run) for run in _alike(rows)]
            head = ["| register | bits | what | bits by name |", "| --- | --- | --- | --- |"]
            parts.append("\n".join([f"### `{feature}`", "", *head, *lines, ""]))
    return "\n".join(parts)


def _alike(rows: list[tuple[DebugView, Register]]) -> Iterator[list[tuple[DebugView, Register]]]:
    """Neighbours of which there is nothing to say but their names, or that differ by a number only, go together."""
    run: list[tuple[DebugView, Register]] = []
    for row in rows:
        if run and _shape(*row) != _shape(*run[-1]):
            yield run
            run = []
        run.append(row)
    yield run


def _shape(view: DebugView, register: Register) -> tuple[object, ...]:
    name = re.sub(r"\d+", "", view.name) if register.summary or view.fields else ""
    return name, view.bits, view.type if view.bits > 64 else "", view.also, register.summary, view.fields


def _register_row(run: list[tuple[DebugView, Register]]) -> str:
    view, register = run[0]
    name = ", ".join(_names(run)) + (f" (`{view.also}`)" if view.also else "")
    fields = ", ".join(_bit_field(field) for field in sorted(view.fields, key=lambda field: field.first))
    return f"| {name} | {view.bits} | {cell(register.summary)} | {fields} |"


def _names(run: list[tuple[DebugView, Register]]) -> Iterator[str]:
    """Names, three and more that count up as the first and the last."""
    names = [view.name for view, _ in run]
    while names:
        first = re.search(r"\d+", names[0])
        end = 1
        if first is not None:
            while end < len(names) and names[end] == names[0].replace(first[0], str(int(first[0]) + end), 1):
                end += 1
        yield f"`{names[0]}` to `{names[end - 1]}`" if end > 2 else ", ".join(f"`{name}`" for name in names[:end])
        names = names[end:]


def _bit_field(field: BitField) -> str:
    place = str(field.first) if field.first == field.last else f"{field.first}-{field.last}"
    return f"`{field.name}` {place}"


# -- command line ------------------------------------------------------------------------------------


def commands() -> str:
    """Usage, purpose and options of every command."""
    context = click.Context(group, info_name="rift")
    parts = []
    for name in group.list_commands(context):
        try:
            command = group.get_command(context, name)
        except click.ClickException as error:
            print(f"left out: {error.message}", file=sys.stderr)
            continue
        if command is None:
            continue
        inner = click.Context(command, info_name=f"rift {name}", parent=None)
        usage = command.get_usage(inner).partition(": ")[2]
        text = " ".join((command.help or "").replace("\n\n", " \0 ").split()).replace(" \0 ", "\n\n")
        rows = []
        for parameter in command.params:
            record = parameter.get_help_record(inner)
            if record is not None and record[1]:
                rows.append(f"| `{cell(record[0])}` | {cell(record[1])} |")
        table = "\n".join(["| option | meaning |", "| --- | --- |", *rows]) if rows else ""
        parts.append(f"### `{' '.join(usage.split())}`\n\n{text}\n\n{table}".rstrip() + "\n")
    return "\n".join(parts)


PARTS = {
    "configuration": configuration,
    "capabilities": capabilities,
    "registers": registers,
    "commands": commands,
}


def page_of(path: Path) -> str:
    """The page with its parts as they should be."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", path.read_text(encoding="utf-8"))


def stale() -> list[str]:
    """Pages whose parts differ from what the code says."""
    return [page for page in PAGES if page_of(ROOT / page) != (ROOT / page).read_text(encoding="utf-8")]


def main() -> int:
    """Write, or with --check tell, what is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a page is out of date")
    check = parser.parse_args().check
    for page in (old := stale()):
        print(f"{page} is out of date" if check else f"wrote {page}")
        if not check:
            (ROOT / page).write_text(page_of(ROOT / page), encoding="utf-8")
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main())
