"""What the FILE of a command is, told by its content; and the options that commands share."""

from __future__ import annotations

import tempfile
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rift_core.catalog import Catalog
from rift_core.config import MachineConfig, load_config
from rift_core.errors import BinaryError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_EXECUTABLE_MAGIC = (
    b"\x7fELF",
    b"\xcf\xfa\xed\xfe",
    b"\xce\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"MZ",
)
"""ELF; Mach-O of 64 and 32 bits, and universal; PE, which some loader may know."""

_C_SUFFIXES = (".c", ".s")


def kind_of(path: Path) -> str:
    """``configuration``, ``source`` or ``executable``.

    :raises BinaryError: it cannot be read, or is none of them.
    """
    try:
        if not path.is_file():
            raise BinaryError(f"{path}: {'is no regular file' if path.exists() else 'there is no such file'}")
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise BinaryError(f"{path} cannot be read: {error.strerror or error}") from None
    if head.startswith(_EXECUTABLE_MAGIC):
        return "executable"
    if path.suffix.lower() in _C_SUFFIXES:
        return "source"
    if path.suffix.lower() == ".toml":
        return "configuration"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return "executable"  # a loader may know it; if none does, it says so
    if not text.strip():
        raise BinaryError(f"{path} is empty: give a configuration (TOML), a C source, or an executable")
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        if any(mark in text for mark in ("#include", "int main", "void ", ".globl")):
            return "source"
        raise BinaryError(f"{path} is neither TOML, nor a C source, nor an executable") from None
    return "configuration"


def machine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--backend``, ``--isa``, ``--privilege``, ``--set``."""
    for option in (
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a key of the configuration."),
        click.option("--privilege", type=click.Choice(["supervisor", "user"]), help="Where the threads start."),
        click.option("--isa", help="Instruction set; default: the file's own."),
        click.option("--backend", help="Backend; default: the first that works."),
    ):
        function = option(function)
    return function


def overrides_of(
    backend: str | None, isa: str | None, privilege: str | None, settings: tuple[str, ...]
) -> dict[str, Any]:
    """The options as dotted keys.

    :raises ConfigError: a setting without ``=``.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting}: write KEY=VALUE, such as --set memory.size=64MiB")
        overrides[key.strip()] = value.strip()
    if backend is not None:
        overrides["backend.name"] = backend
    if isa is not None:
        overrides["isa.name"] = isa
    if privilege is not None:
        overrides["threads.0.privilege"] = privilege
    return overrides


@contextmanager
def configuration(path: Path, overrides: dict[str, Any], isa: str | None = None) -> Iterator[MachineConfig]:
    """The configuration that FILE stands for; a C source is built into a folder that lives as long as the block.

    :raises ConfigError: it is not valid.  :raises BuildError: the source does not compile.
    """
    catalog = Catalog.installed()
    kind = kind_of(path)
    if kind == "configuration":
        yield load_config(path, overrides=overrides, catalog=catalog)
        return
    if kind == "executable":
        yield load_config({"binary": {"path": str(path.absolute())}}, overrides=overrides, catalog=catalog)
        return
    from rift_core.assembly import host_isa
    from rift_core.build import build

    with tempfile.TemporaryDirectory(prefix="rift-run-") as folder:
        built = build(path, Path(folder) / path.stem, isa=isa or host_isa())
        if built.warnings:
            click.echo(built.warnings.rstrip(), err=True)
        yield load_config({"binary": {"path": str(built.path)}}, overrides=overrides, catalog=catalog)
