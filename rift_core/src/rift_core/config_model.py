"""The shape of the configuration: core's own tables, and one discriminated union a kind of plugin."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path  # noqa: TC003 - pydantic reads the annotations
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, create_model

from rift_core import doorbell
from rift_core.plugin import Section
from rift_core.sizes import Size  # noqa: TC001 - pydantic reads the annotations

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rift_core.catalog import Catalog

Integer = Annotated[int, Field(strict=True)]
"""An integer, and neither a string nor a truth value."""

Truth = Annotated[bool, Field(strict=True)]
"""true or false, and nothing that could be taken for them."""

BUILD_KEYS = ("sources", "format", "simd", "pie", "runtime", "compiler", "build_options")
"""Keys of ``[binary]`` that say how a source becomes a payload."""

SINGLE = {"backend": "backend", "isa": "isa", "loader": "loader"}
"""Tables of one plugin, and the kind of the plugins that can be chosen in them; ``auto`` leaves the choice to core."""

ARRAYS = {"exit_handlers": "exit_handler", "extensions": "extension"}
"""Arrays of tables with one plugin each."""


class BinarySection(Section):
    """``[binary]``: what to load."""

    path: Path | None = Field(
        default=None,
        description="The payload, or a C or assembler source (.c, .S, .s) to build it from; relative to the "
        "configuration file.",
    )
    sources: tuple[Path, ...] = Field(default=(), description="More sources that belong to the payload.")
    format: Literal["elf", "macho"] | None = Field(
        default=None, description="What a source is built to; default: Mach-O on macOS, else ELF."
    )
    simd: Truth = Field(
        default=False, description="Let the compiler use vector and floating-point registers, in supervisor code too."
    )
    pie: Truth = Field(default=False, description="Build a static PIE, which can be loaded anywhere.")
    runtime: Truth = Field(default=True, description="Link the guest runtime (rift_guest.h) to it.")
    compiler: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="gcc, clang, zig, or a path; RIFT_CC, else what is installed, if absent."
    )
    build_options: tuple[str, ...] = Field(
        default=(), description="Further options of the compiler, which runs in the configuration's folder."
    )


class MemorySection(Section):
    """``[memory]``: guest-physical memory. Sizes are bytes, or strings such as "64MiB"."""

    size: Size | None = Field(default=None, description="Bytes of RAM; what the image needs, and 16 MiB, if absent.")
    tables: Size | None = Field(
        default=None, description="Bytes of page tables beyond what the layout needs; 512 KiB if absent."
    )
    doorbell: Integer = Field(
        default=doorbell.DEFAULT_ADDRESS,
        ge=0,
        lt=1 << 47,
        description="Guest-physical and guest-virtual address of the doorbell page.",
    )


class ThreadSection(Section):
    """``[[threads]]``: a guest thread."""

    name: str = Field(default="main", min_length=1, pattern=r"^[A-Za-z0-9_.-]+$", description="Unique in the machine.")
    entry: str | Annotated[int, Field(strict=True, ge=0, lt=1 << 64)] | None = Field(
        default=None,
        description="Symbol or address to start at; the symbol main, else the file's entry point, if absent.",
    )
    vectors: str = Field(
        default="auto",
        description='Exception vectors: "auto" (the image\'s own where it has them), "built-in", or a symbol.',
        min_length=1,
    )
    stack: Annotated[Size, Field(gt=0)] = Field(
        default=0x1_0000, description="Bytes of stack; a guard page stands on either side."
    )
    privilege: Literal["supervisor", "user"] = Field(
        default="supervisor", description="The mode that the thread starts in."
    )
    arguments: tuple[Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 64)], ...] = Field(
        default=(), description="Arguments of the entry function, unless start() is given some."
    )


class LimitsSection(Section):
    """``[limits]``: what ends a guest with a LimitError."""

    wall_time: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        strict=True,
        description="Seconds that a guest thread, or a call, may run.",
    )
    exits_per_second: Integer | None = Field(
        default=None, gt=0, description="Exits a second, averaged over a quarter of one."
    )
    console_bytes: Integer | None = Field(
        default=None, ge=0, description="Bytes that the guest may write to its console."
    )


def _member(kind: str, name: str, base: type[Section], summary: str, default: Any) -> type[BaseModel]:
    """A plugin's model with the key ``name`` added."""
    choice: Any = Literal[name]
    model: type[BaseModel] = create_model(
        f"{kind.title()}_{name}",
        __base__=base,
        __doc__=summary,
        name=(choice, Field(default, description=f"Chooses this {kind.replace('_', ' ')}.")),
    )
    return model


def members(kind: str, catalog: Catalog) -> dict[str, type[BaseModel]]:
    """The tables that can be chosen for a kind, by name."""
    automatic = kind in SINGLE.values()
    found: dict[str, type[BaseModel]] = {}
    if automatic:
        found["auto"] = _member(kind, "auto", Section, f"Any {kind} that fits.", "auto")
    for entry in catalog.of_kind(kind):
        info = entry.info
        found[info.name] = _member(kind, info.name, info.config, info.summary, ...)
    return found


def _union(found: dict[str, type[BaseModel]]) -> Any:
    """All of them, told apart by ``name``."""
    choices = tuple(found.values())
    if not choices:
        return create_model("Nothing_installed", __base__=Section, name=(str, ...))
    if len(choices) == 1:
        return choices[0]
    return Annotated[Union[choices], Field(discriminator="name")]  # noqa: UP007 - made from a tuple


def _array(item: Any) -> Any:
    """``tuple[item, ...]`` of a type that is made at run time."""
    return GenericAlias(tuple, (item, ...))


class Shape:
    """The model of the whole file for the plugins of one catalog, and the models it is made of."""

    def __init__(self, catalog: Catalog) -> None:
        self.members = {table: members(kind, catalog) for tables in (SINGLE, ARRAYS) for table, kind in tables.items()}
        self.sections: dict[str, type[BaseModel]] = {
            "binary": BinarySection,
            "memory": MemorySection,
            "threads": ThreadSection,
            "limits": LimitsSection,
        }
        union = {table: _union(found) for table, found in self.members.items()}
        fields: dict[str, Any] = {
            "binary": (BinarySection, Field(default=BinarySection())),
            "loader": (union["loader"], Field(description="Who reads the binary.")),
            "backend": (union["backend"], Field(description="Who runs the guest.")),
            "isa": (union["isa"], Field(description="The guest's instruction set.")),
            "memory": (MemorySection, Field(default=MemorySection())),
            "threads": (_array(ThreadSection), Field(default=(ThreadSection(),), description="The guest's threads.")),
            "exit_handlers": (_array(union["exit_handlers"]), Field(description="Who answers exits.")),
            "extensions": (
                _array(union["extensions"]),
                Field(default=(), description="Who takes part in the machine."),
            ),
            "limits": (LimitsSection, Field(default=LimitsSection())),
        }
        self.roles = sorted({entry.info.table for entry in catalog.of_kind("extension")} - {""})
        for role in self.roles:
            owners = catalog.of_table(role)
            self.members[role] = {
                entry.info.name: _member(
                    role, entry.info.name, entry.info.config, entry.info.summary, ... if owners[1:] else entry.info.name
                )
                for entry in owners
            }
            summary = " or ".join(entry.info.summary for entry in owners)
            fields[role] = (_union(self.members[role]) | None, Field(default=None, description=f"{summary}."))
        self.model: type[BaseModel] = create_model("Configuration", __base__=Section, **fields)

    def keys(self, path: tuple[int | str, ...], name: object) -> list[str]:
        """Valid keys of the table at ``path``, which has chosen the plugin ``name``; empty if unknown."""
        if not path:
            return list(self.model.model_fields)
        table = str(path[0])
        if table in self.members and len(path) == (2 if table in ARRAYS else 1):
            found = self.members[table]
            chosen = next(iter(found.values())) if name is None and len(found) == 1 else found.get(str(name))
            return list(chosen.model_fields) if chosen is not None else ["name"]
        if table in self.sections and len(path) == (2 if table == "threads" else 1):
            return list(self.sections[table].model_fields)
        return []

    def owners(self, table: str, key: str) -> list[str]:
        """Plugins that can be chosen in a table and know a key."""
        return [name for name, model in self.members.get(table, {}).items() if key in model.model_fields]


@lru_cache(maxsize=8)
def shape_of(catalog: Catalog) -> Shape:
    """The shape for a catalog; made once."""
    return Shape(catalog)


def configuration_schema(catalog: Catalog) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the file, for the plugins of ``catalog``."""
    schema = shape_of(catalog).model.model_json_schema()
    schema.pop("required", None)  # every table has a default
    for table in SINGLE:
        # A table of an automatic choice needs no name, and a string alone is the name.
        found = schema["properties"][table]
        description = found.pop("description", "")
        names = list(shape_of(catalog).members[table])
        schema["properties"][table] = {
            "description": description,
            "default": "auto",
            "anyOf": [{"enum": names}, found],
        }
    for table in ARRAYS:
        items = schema["properties"][table]["items"]
        names = list(shape_of(catalog).members[table])
        schema["properties"][table]["items"] = {"anyOf": [*([{"enum": names}] if names else []), items]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "rift.toml",
        "description": "A machine: what to load, who runs it, and who answers.",
    }
