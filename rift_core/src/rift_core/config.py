"""The configuration: core's own tables, and one discriminated union a kind of plugin.

Precedence, highest first: overrides (command line options, ``--set``), the environment
(``RIFT_<SECTION>__<KEY>=value``), the file, defaults. Unknown keys are errors, everywhere.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, ValidationError, create_model

from rift_core import doorbell
from rift_core.catalog import Catalog
from rift_core.config_places import describe_place, find_place
from rift_core.errors import ConfigError
from rift_core.plugin import Section
from rift_core.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
"""Bytes: a number, or a string such as ``"64MiB"``."""

DEFAULT_HANDLERS = ("exit", "console")
"""The exit handlers of a configuration that names none; those that are not installed are left out."""

ENVIRONMENT = "RIFT_"


class BinarySection(Section):
    """``[binary]``: what to load."""

    path: Path | None = Field(None, description="The payload; relative to the configuration file.")


class MemorySection(Section):
    """``[memory]``: guest-physical memory."""

    size: Size | None = Field(None, description="Bytes of RAM; what the image needs, and 16 MiB, if absent.")
    tables: Size | None = Field(
        None, description="Bytes of page tables beyond what the layout needs; 512KiB if absent."
    )
    doorbell: int = Field(
        doorbell.DEFAULT_ADDRESS,
        ge=0,
        lt=1 << 47,
        description="Guest-physical and guest-virtual address of the doorbell page.",
    )


class ThreadSection(Section):
    """``[[threads]]``: a guest thread."""

    name: str = Field("main", min_length=1, pattern=r"^[A-Za-z0-9_.-]+$", description="Unique in the machine.")
    entry: str | int | None = Field(
        None, description="Symbol or address to start at; main, else the file's entry point, if absent."
    )
    vectors: str = Field(
        "auto", description='Exception vectors: "auto", "built-in", or a symbol of the image.', min_length=1
    )
    stack: Size = Field(0x1_0000, description="Bytes of stack; a guard page stands below.", gt=0)
    privilege: Literal["supervisor", "user"] = Field("supervisor", description="Where the thread starts.")
    arguments: tuple[int, ...] = Field((), description="Arguments of the entry function, unless start() is given some.")


class LimitsSection(Section):
    """``[limits]``: what ends a guest with a LimitError."""

    wall_time: float | None = Field(None, gt=0, description="Seconds that a guest thread, or a call, may run.")
    exits_per_second: int | None = Field(None, gt=0, description="Exits a second, averaged over a quarter of one.")
    console_bytes: int | None = Field(None, ge=0, description="Bytes that the guest may write to its console.")


ThreadConfig = ThreadSection


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """A validated configuration."""

    binary: BinarySection
    loader: Any
    backend: Any
    isa: Any
    memory: MemorySection
    threads: tuple[ThreadSection, ...]
    exit_handlers: tuple[Any, ...]
    extensions: tuple[Any, ...]
    limits: LimitsSection
    directory: Path
    path: Path | None = None


def _union(kind: str, catalog: Catalog, *, auto: bool) -> Any:
    """All plugins of a kind, told apart by ``name``."""
    members: list[type[BaseModel]] = []
    if auto:
        members.append(
            create_model(
                f"Auto{kind.title()}",
                __base__=Section,
                __doc__=f"Any {kind} that fits.",
                name=(Literal["auto"], "auto"),
            )
        )
    for entry in catalog.of_kind(kind):
        info = entry.info
        name: Any = Literal[info.name]
        members.append(
            create_model(
                f"{kind.title()}_{info.name}",
                __base__=info.config,
                __doc__=info.summary,
                name=(name, ... if not auto else info.name),
            )
        )
    if not members:
        return create_model(f"No{kind.title()}", __base__=Section, name=(Literal["(none is installed)"], ...))
    if len(members) == 1:
        return members[0]
    return Annotated[Union[tuple(members)], Field(discriminator="name")]  # noqa: UP007 - made from a tuple


@lru_cache(maxsize=8)
def configuration_model(catalog: Catalog) -> type[BaseModel]:
    """The pydantic model of the whole file, for the plugins of ``catalog``."""
    fields: dict[str, Any] = {
        "binary": (BinarySection, Field(default_factory=BinarySection)),
        "loader": (_union("loader", catalog, auto=True), Field(description="Who reads the binary.")),
        "backend": (_union("backend", catalog, auto=True), Field(description="Who runs the guest.")),
        "isa": (_union("isa", catalog, auto=True), Field(description="The guest's instruction set.")),
        "memory": (MemorySection, Field(default_factory=MemorySection)),
        "threads": (tuple[ThreadSection, ...], (ThreadSection(),)),
        "exit_handlers": (
            tuple[_union("exit_handler", catalog, auto=False), ...],
            Field(description="Who answers exits."),
        ),
        "extensions": (tuple[_union("extension", catalog, auto=False), ...], ()),
        "limits": (LimitsSection, Field(default_factory=LimitsSection)),
    }
    return create_model("Configuration", __base__=Section, **fields)


def configuration_schema(catalog: Catalog | None = None) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the file, for the installed plugins."""
    schema = configuration_model(catalog or Catalog.installed()).model_json_schema()
    schema["required"] = [
        key for key in schema.get("required", []) if key not in ("loader", "backend", "isa", "exit_handlers")
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "rift.toml", **schema}


def load_config(
    source: Path | str | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    catalog: Catalog | None = None,
) -> MachineConfig:
    """Read and validate a configuration.

    :param source: a TOML file, or the same as nested dictionaries.
    :param overrides: dotted keys to values; a string is parsed as a TOML value where it is one.
    :raises ConfigError: each problem with its key and, in a file, line and column.
    """
    catalog = catalog or Catalog.installed()
    text, path = "", None
    if isinstance(source, Mapping):
        data = _copy(source)
        directory = Path.cwd()
    else:
        path = Path(source)
        directory = path.absolute().parent
        text, data = _read(path)
    origins: dict[str, str] = {}
    for key, value in _from_environment(os.environ if environ is None else environ).items():
        _put(data, key, value, f"environment variable {_variable(key)}")
        origins[key] = f"environment variable {_variable(key)}"
    for key, value in (overrides or {}).items():
        _put(data, key, _value(value) if isinstance(value, str) else value, f"option {key}")
        origins[key] = f"option {key}"
    return _validate(data, catalog, directory, path, text, origins)


def code_config(*, isa: str, backend: str, catalog: Catalog | None = None, **sections: Any) -> MachineConfig:
    """The configuration of a machine for bare code; ``sections`` are further tables of it."""
    data: dict[str, Any] = {"isa": {"name": isa}, **sections}
    chosen = data.get("backend", {})
    data["backend"] = {"name": backend, **chosen} if isinstance(chosen, Mapping) else chosen
    return load_config(data, catalog=catalog)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _copy(value)
        if isinstance(value, Mapping)
        else [_copy(v) if isinstance(v, Mapping) else v for v in value]
        if isinstance(value, list | tuple)
        else value
        for key, value in data.items()
    }


def _variable(key: str) -> str:
    return ENVIRONMENT + key.replace(".", "__").upper()


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """``RIFT_MEMORY__SIZE=64MiB`` to ``memory.size``; variables without ``__`` mean other things."""
    return {
        name[len(ENVIRONMENT) :].lower().replace("__", "."): _value(value)
        for name, value in environ.items()
        if name.startswith(ENVIRONMENT) and "__" in name[len(ENVIRONMENT) :].strip("_")
    }


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it is none: ``--set backend.name=kvm`` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(data: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key; numbers are positions in an array of tables, whose first is made when missing."""
    parts = key.split(".")
    at: Any = data
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if isinstance(at, list):
            if not part.isdigit() or int(part) > len(at):
                raise ConfigError(
                    f"{origin}: {'.'.join(parts[:position])} is an array of {len(at)} tables; {part!r} is no position in it"
                )
            if int(part) == len(at):
                at.append({})
            if last:
                at[int(part)] = value
            at = at[int(part)]
        elif isinstance(at, dict):
            if last:
                at[part] = value
            else:
                following = parts[position + 1]
                at = at.setdefault(part, [] if following.isdigit() else {})
        else:
            raise ConfigError(f"{origin}: {'.'.join(parts[:position])} is not a table")


def _validate(
    data: dict[str, Any], catalog: Catalog, directory: Path, path: Path | None, text: str, origins: Mapping[str, str]
) -> MachineConfig:
    for key in ("backend", "isa", "loader"):
        section = data.setdefault(key, {})
        if isinstance(section, dict):
            section.setdefault("name", "auto")
    data.setdefault("exit_handlers", [{"name": n} for n in DEFAULT_HANDLERS if catalog.has("exit_handler", n)])
    _check_plugin_names(data, catalog)
    model = configuration_model(catalog)
    try:
        valid: Any = model.model_validate(data)
    except ValidationError as error:
        problems = [_problem(item, data, model, path, text, origins) for item in error.errors()]
        raise ConfigError("\n".join([f"{path or 'the configuration'} is not valid:", *problems])) from None
    names = [thread.name for thread in valid.threads]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(
            f"{path or 'the configuration'}: two [[threads]] are called {doubled[0]!r}; names must be unique"
        )
    return MachineConfig(
        binary=valid.binary,
        loader=valid.loader,
        backend=valid.backend,
        isa=valid.isa,
        memory=valid.memory,
        threads=valid.threads,
        exit_handlers=valid.exit_handlers,
        extensions=valid.extensions,
        limits=valid.limits,
        directory=directory,
        path=path,
    )


def _check_plugin_names(data: Mapping[str, Any], catalog: Catalog) -> None:
    """Unknown names first, with the catalog's message: it lists what is installed, and what failed to load.

    :raises PluginNotFoundError: no such plugin.  :raises PluginConflictError: two of them.
    """
    for key in ("backend", "isa", "loader"):
        section = data.get(key)
        name = section.get("name") if isinstance(section, Mapping) else None
        if isinstance(name, str) and name != "auto":
            catalog.get(key, name)
    for key, kind in (("exit_handlers", "exit_handler"), ("extensions", "extension")):
        tables = data.get(key)
        for table in tables if isinstance(tables, list) else ():
            name = table.get("name") if isinstance(table, Mapping) else None
            if isinstance(name, str):
                catalog.get(kind, name)


def _problem(
    item: Any, data: Mapping[str, Any], model: type[BaseModel], path: Path | None, text: str, origins: Mapping[str, str]
) -> str:
    """One problem: key, what is wrong, where it stands."""
    place = real_place(item["loc"], data)
    key = ".".join(str(part) for part in place) or "(the whole file)"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = f"there is no such key{_suggestion(str(place[-1]), _siblings(model, item['loc']))}"
    elif item["type"] == "union_tag_not_found":
        message = 'the key "name" is missing: it chooses the plugin'
    for origin, source in origins.items():
        if key == origin or key.startswith(origin + "."):
            return f"  {key}: {message} ({source})"
    where = find_place(text, place) if path is not None else None
    if where is None:
        return f"  {key}: {message}"
    return f"  {key}: {message}\n{describe_place(path, text, where)}"


def real_place(location: Sequence[int | str], data: Any) -> tuple[int | str, ...]:
    """A pydantic error location without the tags of unions: only what can be found in the data, and the last key."""
    place: list[int | str] = []
    at = data
    for position, part in enumerate(location):
        if (isinstance(at, Mapping) and part in at) or (isinstance(at, list | tuple) and isinstance(part, int) and part < len(at)):
            at = at[part]
        elif position == len(location) - 1 and isinstance(at, Mapping):
            place.append(part)  # a missing key
            break
        else:
            continue
        place.append(part)
    return tuple(place)


def _siblings(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Valid keys of the table in which the last part of ``location`` stands."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    at: Any = schema
    for part in location[:-1]:
        at = _resolve(at, definitions)
        if isinstance(part, int):
            at = at.get("items", at.get("prefixItems", [{}])[0] if at.get("prefixItems") else {})
        elif part in at.get("properties", {}):
            at = at["properties"][part]
        elif "discriminator" in at:
            at = {"$ref": at["discriminator"]["mapping"].get(str(part), "")}
    return list(_resolve(at, definitions).get("properties", {}))


def _resolve(schema: Any, definitions: Mapping[str, Any]) -> Any:
    while "$ref" in schema:
        schema = definitions.get(schema["$ref"].rpartition("/")[2], {})
    return schema


def _suggestion(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" (there are: {', '.join(known)})" if known else ""


__all__ = ["MachineConfig", "ThreadConfig", "code_config", "configuration_schema", "load_config"]
