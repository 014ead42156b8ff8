"""The configuration: a TOML file, or the same as nested dictionaries, validated and ready to use.

Precedence, highest first: overrides (command line options, ``--set``), the environment
(``RIFT_<SECTION>__<KEY>=value``), the file, defaults. Unknown keys are errors, everywhere.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rift_core.catalog import Catalog
from rift_core.config_model import (
    ARRAYS,
    BUILD_KEYS,
    SINGLE,
    BinarySection,
    LimitsSection,
    MemorySection,
    ThreadSection,
    configuration_schema,
    shape_of,
)
from rift_core.config_places import excerpt, syntax_problem
from rift_core.config_problems import Document, describe_errors
from rift_core.errors import ConfigError, PluginConflictError, PluginNotFoundError
from rift_core.files import is_source, kind_of
from rift_core.overrides import apply_overrides
from rift_core.sizes import Size

if TYPE_CHECKING:
    from os import PathLike

DEFAULT_HANDLERS = ("exit", "console")
"""The exit handlers of a configuration that names none; those that are not installed are left out."""

LARGEST_FILE = 1 << 20
"""Bytes that are read of a configuration file at most."""

ThreadConfig = ThreadSection


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """A validated configuration.

    ``backend``, ``isa``, ``loader``, and each of ``exit_handlers`` and ``extensions``, are the plugin's own
    model with the key ``name`` added; a name ``auto`` leaves the choice to the machine. Relative paths count
    from ``directory``: the file's, or the current one. ``path`` is None for dictionaries. An extension's own table
    (``PluginInfo.table``) has become one of ``extensions``. ``assumed_thread``: no threads are named, and the one
    that there is stands for an image that has somewhere to start.
    """

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
    assumed_thread: bool = False


def load_config(
    source: PathLike[str] | str | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    catalog: Catalog | None = None,
) -> MachineConfig:
    """Read and validate a configuration.

    :param source: a TOML file, or the same as nested dictionaries. A C or assembler source, or an executable, stands
        for a configuration that only names it; the content decides.
    :param overrides: dotted keys to values; a string is parsed as a TOML value where it is one.
    :param environ: instead of the process's environment.
    :param catalog: the plugins to choose from, instead of all that are installed.
    :raises ConfigError: each problem with its key and, in a file, line and column.
    :raises BinaryError: the file is neither a configuration, nor a source, nor an executable.
    :raises PluginNotFoundError: a name chooses a plugin that is not installed.
    :raises PluginConflictError: a name chooses a plugin that two distributions provide.
    """
    catalog = catalog if catalog is not None else Catalog.installed()
    path: Path | None = None
    text = ""
    directory = _current_directory()
    if isinstance(source, Mapping):
        data = _copy(source)
    else:
        path = Path(source)
        directory = path.absolute().parent
        if _names_payload(path):
            data, path = {"binary": {"path": str(path.absolute())}}, None
        else:
            text, data = _read(path)
    threads_given = "threads" in data
    _complete(data, catalog)
    origins = apply_overrides(data, os.environ if environ is None else environ, overrides or {})
    _complete(data, catalog)
    config = _validate(Document(data, path, text, origins), catalog, directory)
    threads_given = threads_given or any(place[0] == "threads" for place in origins)
    return config if threads_given else replace(config, assumed_thread=True)


def code_config(
    *,
    isa: str,
    backend: str,
    catalog: Catalog | None = None,
    environ: Mapping[str, str] | None = None,
    **sections: Any,
) -> MachineConfig:
    """The configuration of a machine for bare code; ``sections`` are further tables of it.

    ``isa`` and ``backend`` stand above the environment unless they are ``auto``.
    :raises ConfigError: see :func:`load_config`.
    """
    chosen = {"isa.name": isa, "backend.name": backend}
    overrides = {key: name for key, name in chosen.items() if name != "auto"}
    return load_config(sections, overrides=overrides, environ=environ, catalog=catalog)


def _names_payload(path: Path) -> bool:
    """Whether a file is no configuration but a payload. What is not there would have been one."""
    return path.suffix.lower() != ".toml" and path.exists() and kind_of(path) != "configuration"


def extension_section(name: str, settings: Mapping[str, Any], catalog: Catalog) -> Any:
    """The validated table of an extension that no file names.

    :raises ConfigError: each problem with its key.
    """
    shape = shape_of(catalog)
    document = Document({"extensions": [{"name": name, **settings}]})
    try:
        return shape.members["extensions"][name].model_validate(document.data["extensions"][0])
    except ValidationError as error:
        placed = [{**e, "loc": ("extensions", 0, *e["loc"])} for e in error.errors(include_url=False)]
        problems = describe_errors(placed, document, shape)
        raise ConfigError("\n".join([f"the settings of extension {name!r} are not valid:", *problems])) from None


def _current_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current directory has been removed: change to one that is there") from None


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path} is larger than {LARGEST_FILE} bytes: that is no configuration")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not valid UTF-8: that is no configuration") from None
    text = text.replace("\r\n", "\n")
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, place = syntax_problem(text, str(error))
        raise ConfigError(f"{path} is not valid TOML: {message}\n{excerpt(path, text, place)}") from None
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits, arrays thousands deep: tomllib lets Python's own limits show.
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise ConfigError(f"{path} is not valid TOML: {reason}") from None


def _copy(data: Any) -> Any:
    """A copy whose tables and arrays may be changed."""
    if isinstance(data, Mapping):
        return {key: _copy(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_copy(value) for value in data]
    return data


def _complete(data: dict[str, Any], catalog: Catalog) -> None:
    """Write out what the file may leave out: a name alone for its table, automatic choices, defaults of arrays."""
    for table in SINGLE:
        section = data.setdefault(table, {})
        if isinstance(section, str):
            data[table] = {"name": section}
        elif isinstance(section, dict):
            section.setdefault("name", "auto")
    data.setdefault("threads", [{"name": ThreadSection().name}])
    data.setdefault("exit_handlers", [name for name in DEFAULT_HANDLERS if catalog.has("exit_handler", name)])
    for table in ARRAYS:
        tables = data.get(table)
        if isinstance(tables, list):
            data[table] = [{"name": item} if isinstance(item, str) else item for item in tables]


def _validate(document: Document, catalog: Catalog, directory: Path) -> MachineConfig:
    subject = str(document.path) if document.path is not None else "the configuration"
    _check_plugin_names(document, catalog, subject)
    shape = shape_of(catalog)
    try:
        valid: Any = shape.model.model_validate(document.data)
    except ValidationError as error:
        problems = describe_errors(error.errors(include_url=False), document, shape)
        raise ConfigError("\n".join([f"{subject} is not valid:", *problems])) from None
    if valid.binary.path is None or not is_source(valid.binary.path):
        keys = [key for key in BUILD_KEYS if key in valid.binary.model_fields_set]
        message = "says how to build a source, but path names none" + (
            f" ({valid.binary.path})" if valid.binary.path is not None else ""
        )
        problems = [document.problem(("binary", key), message) for key in keys]
        if problems:
            raise ConfigError("\n".join([f"{subject} is not valid:", *problems]))
    seen: set[str] = set()
    for position, thread in enumerate(valid.threads):
        if thread.name in seen:
            message = f"two [[threads]] are called {thread.name!r}; names must be unique"
            problem = document.problem(("threads", position, "name"), message, value=True)
            raise ConfigError(f"{subject} is not valid:\n{problem}")
        seen.add(thread.name)
    extensions = list(valid.extensions)
    for role in shape.roles:
        section = getattr(valid, role)
        if section is None:
            continue
        if any(section.name == other.name for other in extensions):
            message = f"extension {section.name!r} is configured twice: in [{role}], and in [[extensions]]"
            raise ConfigError(f"{subject} is not valid:\n{document.problem((role,), message)}")
        extensions.append(section)
    return MachineConfig(
        binary=valid.binary,
        loader=valid.loader,
        backend=valid.backend,
        isa=valid.isa,
        memory=valid.memory,
        threads=valid.threads,
        exit_handlers=valid.exit_handlers,
        extensions=tuple(extensions),
        limits=valid.limits,
        directory=directory,
        path=document.path,
    )


def _check_plugin_names(document: Document, catalog: Catalog, subject: str) -> None:
    """Unknown names first, with the catalog's message: it lists what is installed, and what failed to load.

    :raises PluginNotFoundError: no such plugin.  :raises PluginConflictError: two of them.
    """
    wanted: list[tuple[str, tuple[int | str, ...]]] = [(kind, (table, "name")) for table, kind in SINGLE.items()]
    for table, kind in ARRAYS.items():
        tables = document.data.get(table)
        if isinstance(tables, list):
            wanted += [(kind, (table, position, "name")) for position in range(len(tables))]
    for kind, path in wanted:
        name = document.at(path)
        if not isinstance(name, str) or (name == "auto" and path[0] in SINGLE):
            continue
        try:
            catalog.get(kind, name)
        except (PluginNotFoundError, PluginConflictError) as error:
            problem = document.problem(path, str(error), value=True)
            raise type(error)(f"{subject} cannot be used:\n{problem}") from None


__all__ = [
    "DEFAULT_HANDLERS",
    "MachineConfig",
    "Size",
    "ThreadConfig",
    "code_config",
    "configuration_schema",
    "load_config",
]
