"""Options of Rift's own commands that this plugin adds."""

from __future__ import annotations

from rift_core.commands.extensions import extension_option

core = extension_option(
    "--core",
    extension="core-file",
    key="path",
    metavar="FILE",
    help="Write an ELF core file of the guest when it faults, else when it ends: gdb PAYLOAD FILE shows it.",
)
