"""Whose code a payload is: an ISA's part of the guest runtime.

The sources of the guest runtime are compiled along: the generic ones beside ``rift_guest.h``, and those of
the ISA, which stand in the folder ``guest`` of the package that provides it. That folder holds a
``build.toml``:

========================  =====================================================================================
``machine``               ``platform.machine()`` of hosts whose plain gcc and clang compile for this ISA
``cross_prefix``          prefixes of gcc on other hosts, such as ``aarch64-linux-gnu-``
``clang_target``          clang's ``--target`` on other hosts; linking then takes lld
``zig_target``            zig's ``-target``: the compiler in PyPI's package ziglang
``flags``                 always
``general_only``          unless ``simd``: only general registers, so that supervisor code saves no others
``simd``                  with ``simd``
``base``                  the payload's first guest-virtual address
``page_size``             code, constants and data stand on pages of their own of that size
``macho_arch``            Apple's name of the ISA, where there are Mach-O files for it
``macho_flags``           always for Mach-O, whose default CPU may be newer than the ISA's first; may be left out
========================  =====================================================================================
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import tomllib
from dataclasses import dataclass
from pathlib import Path

from rift_core.errors import PluginNotFoundError, RiftError
from rift_core.plugin import ENTRY_POINTS

RUNTIME = Path(__file__).with_name("guest")
"""Folder of ``rift_guest.h``, of the sources behind it and of the linker scripts."""


class BuildError(RiftError):
    """The payload could not be built.

    :param output: what the compiler said, or "" where it never ran.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(f"{message}\n{output.rstrip()}" if output else message)
        self.output = output


@dataclass(frozen=True, slots=True)
class Target:
    """An ISA's part of the guest runtime; see the module's text for the keys of its ``build.toml``."""

    isa: str
    folder: Path
    machine: tuple[str, ...]
    cross_prefix: tuple[str, ...]
    clang_target: str
    zig_target: str
    flags: tuple[str, ...]
    general_only: tuple[str, ...]
    simd: tuple[str, ...]
    base: int
    page_size: int
    macho_arch: str = ""
    macho_flags: tuple[str, ...] = ()

    @classmethod
    def read(cls, isa: str, folder: Path) -> Target:
        """Read ``folder/build.toml``.

        :raises BuildError: it is not there, or a key is missing.
        """
        try:
            values = tomllib.loads((folder / "build.toml").read_text())
            return cls(
                isa=isa,
                folder=folder,
                machine=tuple(values["machine"]),
                cross_prefix=tuple(values["cross_prefix"]),
                clang_target=str(values["clang_target"]),
                zig_target=str(values["zig_target"]),
                flags=tuple(values["flags"]),
                general_only=tuple(values["general_only"]),
                simd=tuple(values["simd"]),
                base=int(values["base"]),
                page_size=int(values["page_size"]),
                macho_arch=str(values.get("macho_arch", "")),
                macho_flags=tuple(values.get("macho_flags", ())),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BuildError(
                f"the guest runtime of ISA {isa!r} has no usable {folder / 'build.toml'}: {error!r}"
            ) from error

    @property
    def is_native(self) -> bool:
        """Whether this host's own compilers make code for it."""
        return platform.machine() in self.machine and platform.system() == "Linux"


def isa_sources(isa: str) -> Path:
    """The folder ``guest`` of the package that provides an ISA; the package is found, not imported.

    An ISA's entry point in the group ``rift.plugins`` has the ISA's name.

    :raises PluginNotFoundError: there is none of that name; the message lists what can be built for.
    """
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    folders: dict[str, Path] = {}
    for point in points:
        spec = importlib.util.find_spec(point.module) if "." not in point.module else None
        for location in (spec.submodule_search_locations or ()) if spec else ():
            folder = Path(location) / "guest"
            if (folder / "build.toml").is_file():
                folders[point.name] = folder
    if isa not in folders:
        known = ", ".join(sorted(folders)) or "none"
        raise PluginNotFoundError(f"no installed plugin brings a guest runtime for ISA {isa!r} (there are: {known})")
    return folders[isa]
