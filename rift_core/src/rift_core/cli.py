"""``rift``: a click group that imports a command only when it is called.

Exit status: that of the guest (its low 8 bits), or 1 for a Rift error, 2 for usage and configuration, 124 for a time
limit, 125 for a guest fault, 130 for Ctrl-C. Messages go to standard error.
"""

from __future__ import annotations

import errno
import sys
from importlib import import_module

import click

from rift_core.commands.extensions import add_options

OWN_COMMANDS = {
    "run": "Run a payload: a configuration, a C source, or an executable.",
    "build": "Compile a payload with the guest runtime.",
    "check": "Plan a machine without touching a hypervisor; show its memory.",
    "inspect": "Show format, segments, address space and symbols of an executable.",
    "plugins": "List what is installed.",
    "doctor": "Find out what works on this machine, and what to do about the rest.",
    "schema": "Print the JSON schema of rift.toml for the installed plugins.",
}
"""Name and one line of help: all that ``rift --help`` needs."""

EXTENSIBLE_COMMANDS = frozenset({"run"})
"""Commands to which plugins may add options (``rift_core.commands.extensions``)."""

COMMANDS = "rift.commands"  # rift_core.plugin.COMMANDS, which would import pydantic

STATUS_ERROR = 1
STATUS_USAGE = 2
STATUS_TIME_LIMIT = 124
STATUS_GUEST_FAULT = 125
STATUS_INTERRUPTED = 130

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says of a file that takes no more."""


def _plugin_commands() -> dict[str, str]:
    """Commands of plugins, by their metadata only: name to ``module:attribute``."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=COMMANDS) if point.name not in OWN_COMMANDS}


class LazyGroup(click.Group):
    """Commands by name; modules only when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Rift's own in a sensible order, then those of plugins."""
        return [*OWN_COMMANDS, *sorted(_plugin_commands())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command.

        :raises click.ClickException: a plugin's command cannot be loaded.
        """
        if cmd_name in OWN_COMMANDS:
            command: click.Command = import_module(f"rift_core.commands.{cmd_name}").command
            return add_options(command, cmd_name) if cmd_name in EXTENSIBLE_COMMANDS else command
        value = _plugin_commands().get(cmd_name)
        if value is None:
            return None
        module, _, attribute = value.partition(":")
        try:
            found: click.Command = getattr(import_module(module), attribute or "command")
        except Exception as error:
            raise click.ClickException(
                f"command {cmd_name!r} of a plugin cannot be loaded ({value}): {type(error).__name__}: {error}"
            ) from error
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line each, without importing any."""
        rows = list(OWN_COMMANDS.items())
        rows += [(name, f"(plugin: {value.partition(':')[0]})") for name, value in sorted(_plugin_commands().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="riftvm-core", prog_name="rift")
def group() -> None:
    """Run threads of an ordinary process in supervisor mode."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``rift`` command; exits the process."""
    sys.exit(status_of(arguments))


def status_of(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    try:
        result = group.main(args=arguments, prog_name="rift", standalone_mode=False)
    except click.exceptions.Abort:
        return STATUS_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # nobody reads it: the interpreter must not flush it at exit
        return STATUS_ERROR
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            sys.stdout = None  # the interpreter would try once more
            place = error.filename or "the output"
            click.echo(f"rift: {place} cannot be written: {error.strerror}; make room, or write elsewhere", err=True)
            return STATUS_ERROR
        status = _status_of_error(error)
        if status is None:
            raise
        click.echo(f"rift: {error}", err=True)
        return status
    return result if isinstance(result, int) else 0


def _status_of_error(error: Exception) -> int | None:
    """The exit status that an error stands for; None for a bug, whose traceback is wanted."""
    from rift_core import errors

    if isinstance(error, errors.ConfigError | errors.PluginNotFoundError):  # the latter: a name chosen by the user
        return STATUS_USAGE
    if isinstance(error, TimeoutError):
        return STATUS_TIME_LIMIT
    if isinstance(error, errors.LimitError):
        return STATUS_TIME_LIMIT if error.limit == "limits.wall_time" else STATUS_GUEST_FAULT
    if isinstance(error, errors.GuestError):
        return STATUS_GUEST_FAULT
    if isinstance(error, errors.RiftError):
        return STATUS_ERROR
    return None


if __name__ == "__main__":
    main()
