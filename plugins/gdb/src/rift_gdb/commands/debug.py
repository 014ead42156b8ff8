"""``rift debug``."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rift_core.commands.parameters import integer
from rift_core.commands.source import configuration, machine_options, overrides_of

if TYPE_CHECKING:
    from rift_core.config import MachineConfig
    from rift_core.machine import Machine
    from rift_gdb.server import Server


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@machine_options
@click.option("--port", metavar="ADDRESS", help="Listen on 9999, :9999, host:9999, or any free port: 0.")
@click.option("--socket", metavar="PATH", help="Listen on a Unix socket, which only you can use.")
@click.option("--wait/--no-wait", default=True, help="Whether the guest begins only when a debugger lets it.")
@click.option("--gdb", "client", flag_value="gdb", help="Start GDB in this terminal, connected.")
@click.option("--lldb", "client", flag_value="lldb", help="Start LLDB in this terminal, connected.")
@click.option("--client-program", metavar="PATH", help="The debugger to start, instead of the one that is found.")
@click.option("--write-vscode", is_flag=True, help="Write .vscode/launch.json for three extensions, and go on.")
@click.option("--allow-remote", is_flag=True, help="Let other machines in, all of whose users may then do anything.")
@click.argument("arguments", nargs=-1, type=integer)
def command(
    file: Path,
    backend: str | None,
    isa: str | None,
    privilege: str | None,
    settings: tuple[str, ...],
    port: str | None,
    socket: str | None,
    wait: bool,
    client: str | None,
    client_program: str | None,
    write_vscode: bool,
    allow_remote: bool,
    arguments: tuple[int, ...],
) -> int:
    """Run a payload under a debugger: GDB, LLDB, or an editor.

    FILE is a configuration (TOML), a C or assembler source, which is built first, or an executable.
    ARGUMENTS, after --, go to the entry function of the first thread.
    """
    if port is not None and socket is not None:
        raise click.UsageError("give --port or --socket, not both")
    with ExitStack() as stack:
        listen = port if socket is None else f"unix:{socket}"
        if client is not None and listen is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rift-debug-"))
            listen = f"unix:{folder}/socket"
        config = configuration(file, overrides_of(backend, isa, privilege, settings))
        config = _with_debugger(config, listen, wait, allow_remote)
        from rift_core.machine import open_machine

        machine = stack.enter_context(open_machine(config))
        server: Server = machine.debug()
        if write_vscode:
            _write_vscode(machine, server)
        for notice in machine.notices:
            click.echo(f"rift: {notice}", err=True)
        if client is not None:
            return _run_with_client(machine, server, client, client_program, arguments)
        _say_how(machine, server, wait)
        return machine.run(*arguments).status & 0xFF


def _with_debugger(config: MachineConfig, listen: str | None, wait: bool, allow_remote: bool) -> MachineConfig:
    """The configuration with the options in its ``[debug]``, which is added where there is none."""
    from rift_core.catalog import Catalog
    from rift_core.config import extension_section
    from rift_gdb.config import GdbConfig

    values: dict[str, Any] = {"wait": wait}
    if listen is not None:
        values["listen"] = listen
    if allow_remote:
        values["allow_remote"] = True
    before = next((section for section in config.extensions if isinstance(section, GdbConfig)), None)
    if before is not None:
        values = {**before.model_dump(exclude={"name"}), **values}
    section = extension_section("gdb", values, Catalog.installed())
    others = tuple(other for other in config.extensions if other is not before)
    return replace(config, extensions=(*others, section))


def _say_how(machine: Machine, server: Server, wait: bool) -> None:
    from rift_gdb.clients import shell_line

    what = "the guest waits for a debugger at" if wait else "debuggers may come to"
    click.echo(f"rift: {what} {server.address}", err=True)
    for kind in ("gdb", "lldb"):
        click.echo(f"rift:   {shell_line(kind, server.address, machine.binary.path)}", err=True)


def _write_vscode(machine: Machine, server: Server) -> None:
    from rift_gdb.clients import ClientError, launch_configurations, write_launch_file

    payload = machine.binary.path
    if payload is None:
        raise ClientError("there is no payload file that an editor could open")
    entries = launch_configurations(server.address, payload.absolute(), machine.isa.name)
    click.echo(f"rift: wrote {write_launch_file(Path.cwd(), entries)}", err=True)


def _run_with_client(
    machine: Machine, server: Server, kind: str, program: str | None, arguments: tuple[int, ...]
) -> int:
    """The debugger has the terminal, Ctrl-C included; when it has gone the guest goes on as it left it."""
    from rift_gdb.clients import command_line, find_program

    found = find_program(kind, machine.isa.name, program)
    line = command_line(kind, found, server.address, machine.binary.path)
    threads = machine.threads
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        for position, thread in enumerate(threads):
            thread.start(*(arguments if position == 0 else ()))
        status = subprocess.run(line, check=False).returncode
        if status != 0 and not server.clients:
            machine.kill()
            return 1
    finally:
        signal.signal(signal.SIGINT, before)
    stops = [thread.join() for thread in threads]
    return stops[0].status & 0xFF if stops else 0
