"""Debuggers on this machine: which program, and with what arguments it finds the server by itself."""

from __future__ import annotations

import json
import shlex
import shutil
from typing import TYPE_CHECKING, Any

from rift_core.errors import RiftError

if TYPE_CHECKING:
    from pathlib import Path

    from rift_gdb.address import Address

_GDBS = {"x86_64": ("gdb", "gdb-multiarch"), "aarch64": ("gdb-multiarch", "aarch64-linux-gnu-gdb", "gdb")}
_MARK = "Rift: "
_LLDB_MONITOR = "command regex monitor 's/^(.*)$/process plugin packet monitor %1/'"
"""GDB's name for it. An alias cannot be made before there is a process."""


class ClientError(RiftError):
    """A debugger, or its configuration, is missing or not as it should be."""


def _names(kind: str, isa: str) -> tuple[str, ...]:
    return _GDBS.get(isa, ("gdb", "gdb-multiarch")) if kind == "gdb" else (kind,)


def find_program(kind: str, isa: str, wanted: str | None = None) -> str:
    """The debugger's path. Debian's plain gdb knows the host's ISA only.

    :param kind: ``gdb`` or ``lldb``.
    :raises ClientError: there is none.
    """
    names = (wanted,) if wanted is not None else _names(kind, isa)
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    package = "gdb-multiarch" if kind == "gdb" and isa == "aarch64" else kind
    raise ClientError(f"no {' or '.join(names)} is installed: install the package {package}")


def target_of(kind: str, address: Address) -> str:
    """The command with which a debugger connects."""
    if kind == "gdb":
        return f"target remote {address.path if address.path is not None else address}"
    if address.path is not None:
        # LLDB takes its commands apart as a shell does; GDB takes all that is left of the line.
        return f"process connect --plugin gdb-remote {shlex.quote(f'unix-connect://{address.path.absolute()}')}"
    return f"gdb-remote {address}"


def command_line(kind: str, program: str, address: Address, payload: Path | None) -> list[str]:
    """Program and arguments of a debugger that connects at once."""
    first = ["-q"] if kind == "gdb" else ["-o", _LLDB_MONITOR]
    return [program, *first, *_connecting(kind, address, payload)]


def shell_line(kind: str, address: Address, payload: Path | None) -> str:
    """What a user types to start a debugger that connects at once."""
    return shlex.join([kind, *_connecting(kind, address, payload)])


def _connecting(kind: str, address: Address, payload: Path | None) -> list[str]:
    files = [str(payload)] if payload is not None else []
    return [*files, "-ex" if kind == "gdb" else "-o", target_of(kind, address)]


def launch_configurations(address: Address, payload: Path, isa: str) -> list[dict[str, Any]]:
    """For CodeLLDB, lldb-dap, and Microsoft's C/C++ extension.

    :raises ClientError: the address is no TCP address.
    """
    if address.path is not None:
        raise ClientError("VS Code's extensions connect by TCP: give --port, not --socket")
    host = address.hosts[0]
    program = str(payload)
    names = _names("gdb", isa)
    gdb = next((name for name in names if shutil.which(name)), names[0])
    return [
        {
            "name": f"{_MARK}CodeLLDB",
            "type": "lldb",
            "request": "attach",
            "targetCreateCommands": [f"target create {shlex.quote(program)}"],
            "processCreateCommands": [f"gdb-remote {address}"],
            "stopOnEntry": True,
        },
        {
            "name": f"{_MARK}lldb-dap",
            "type": "lldb-dap",
            "request": "attach",
            "program": program,
            "gdb-remote-port": address.port,
            "gdb-remote-hostname": host,
            "stopOnEntry": True,
        },
        {
            "name": f"{_MARK}C/C++ (gdb)",
            "type": "cppdbg",
            "request": "launch",
            "program": program,
            "cwd": "${workspaceFolder}",
            "MIMode": "gdb",
            "miDebuggerPath": gdb,
            "miDebuggerServerAddress": str(address),
            "stopAtConnect": True,
        },
    ]


def write_launch_file(folder: Path, configurations: list[dict[str, Any]]) -> Path:
    """Put them into ``.vscode/launch.json``; what is there already, but for Rift's own from before, stays.

    :raises ClientError: the file cannot be read as plain JSON, or not be written.
    """
    path = folder / ".vscode" / "launch.json"
    data: Any = {"version": "0.2.0", "configurations": []}
    try:
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
        others = [c for c in data["configurations"] if not str(c.get("name", "")).startswith(_MARK)]
        data["configurations"] = [*others, *configurations]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data, indent=4) + "\n", encoding="utf-8")
    except OSError as error:
        raise ClientError(f"{path} cannot be written: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        text = json.dumps(configurations, indent=4)
        raise ClientError(
            f"{path} is not plain JSON (it may have comments), and is left as it is; add to its configurations:\n{text}"
        ) from None
    return path
