"""The monitor's commands. Other plugins add theirs with the hook ``rift_gdb_monitor_commands``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.errors import RiftError
from rift_gdb.errors import PacketError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_gdb.session import Session

    Command = Callable[[Session, list[str]], str]

_COMMANDS: dict[str, tuple[str, Command]] = {}


def command(usage: str, help: str) -> Callable[[Command], Command]:
    """Register a command; the first word of ``usage`` is its name."""

    def register(function: Command) -> Command:
        _COMMANDS[usage.split()[0]] = (f"{usage:<22} {help}", function)
        return function

    return register


def run_command(session: Session, line: str) -> str:
    """Run a line; its text."""
    words = line.split()
    if not words:
        words = ["help"]
    found = _COMMANDS.get(words[0])
    if found is None:
        return f"there is no command {words[0]!r}; try: monitor help\n"
    try:
        return found[1](session, words[1:])
    except (PacketError, RiftError, ValueError) as error:
        return f"{words[0]}: {error}\n"


@command("help", "This list.")
def help_command(session: Session, words: list[str]) -> str:
    return "".join(f"{line}\n" for line, _ in _COMMANDS.values())
