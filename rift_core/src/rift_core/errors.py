"""Everything Rift raises on purpose.

The command line prints these in one paragraph; anything else is a bug and keeps its traceback.
Nothing here is raised for control flow.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rift_core.exits import Exit, Stop
    from rift_core.report import FaultReport


def again(error: BaseException) -> BaseException:
    """A copy to raise, of an exception that is kept.

    Raising adds the callers' frames to an exception, and with them all that they refer to: kept by a machine's
    internals it would keep the machine itself alive, for ever. What cannot be copied is handed out as it is.
    """
    try:
        if isinstance(error, RiftError):  # their own constructors take something else than ``args``
            made: BaseException = type(error).__new__(type(error))
            made.args = error.args
            made.__dict__.update(error.__dict__)
        else:
            made = copy.copy(error)
    except Exception:
        return error
    if type(made) is not type(error):
        return error
    made.__cause__, made.__context__ = error.__cause__, error.__context__
    made.__suppress_context__ = error.__suppress_context__
    return made.with_traceback(error.__traceback__)


class RiftError(Exception):
    """Base of all errors that Rift raises on purpose."""


class ConfigError(RiftError):
    """The configuration is not valid; the message names each key and, in a file, its line."""


class PluginError(RiftError):
    """Something about an installed, or missing, plugin."""


class PluginNotFoundError(PluginError):
    """No plugin of that kind and name is installed; the message lists those that are."""


class PluginConflictError(PluginError):
    """Two distributions provide the same kind and name."""


class PluginLoadError(PluginError):
    """An entry point failed to import; ``__cause__`` is the reason."""


class PluginUnavailableError(PluginError):
    """The plugin is installed but cannot work here; the message says why and what to do."""


class BinaryError(RiftError):
    """An executable file is damaged, hostile or of a kind that cannot be loaded."""


class SymbolNotFoundError(BinaryError):
    """The image has no such symbol; the message lists the nearest names."""


class MappingError(RiftError):
    """A guest mapping or memory region cannot be made: overlap, misalignment, no room."""


class AddressError(RiftError):
    """A guest address range lies outside what is mapped."""


class StateError(RiftError):
    """The call is not possible in the present state (still running, already started, closed)."""


class ReentrancyError(StateError):
    """The calling thread is inside a guest call already and cannot start another."""


class ForkedMachineError(StateError):
    """The machine belongs to the parent of this forked process."""


class UnsupportedError(RiftError):
    """The backend lacks a capability; the message names both."""


class HypervisorError(RiftError):
    """A hypervisor call failed.

    :param operation: the call's name as in the manual, such as ``KVM_SET_SREGS``.
    :param code: ``errno``, or the framework's return code.
    :param text: what the code means; looked up with :func:`os.strerror` when None.
    """

    def __init__(self, operation: str, code: int, text: str | None = None, hint: str = "") -> None:
        self.operation = operation
        self.code = code
        meaning = os.strerror(code) if text is None else text
        message = f"{operation} failed: {meaning} (errno {code})" if text is None else f"{operation} failed: {meaning}"
        super().__init__(f"{message}; {hint}" if hint else message)


class GuestError(RiftError):
    """The guest's fault, not the host's."""

    def __init__(
        self,
        message: str,
        *,
        exit: Exit | None = None,
        registers: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.exit = exit
        self.registers = dict(registers or {})


class UnhandledExitError(GuestError):
    """No exit handler took the exit; ``handlers`` names those that were asked."""

    def __init__(
        self,
        message: str,
        *,
        exit: Exit | None = None,
        registers: Mapping[str, int] | None = None,
        handlers: Iterable[str] = (),
    ) -> None:
        super().__init__(message, exit=exit, registers=registers)
        self.handlers = tuple(handlers)


class GuestFaultError(GuestError):
    """The guest raised a CPU exception that nothing in it handled; ``report`` tells all about it."""

    def __init__(self, report: FaultReport, *, exit: Exit | None = None) -> None:
        super().__init__(str(report), exit=exit, registers=report.registers)
        self.report = report


class GuestCrashError(GuestError):
    """The vCPU cannot go on: triple fault, failed entry, an instruction the hypervisor cannot emulate."""


class LimitError(GuestError):
    """A limit of ``[limits]`` ended the guest; ``limit`` is the key."""

    def __init__(
        self,
        message: str,
        *,
        limit: str,
        exit: Exit | None = None,
        registers: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message, exit=exit, registers=registers)
        self.limit = limit


class GuestExitError(GuestError):
    """A called guest function did not return: the guest ended instead. ``stop`` says how."""

    def __init__(self, message: str, *, stop: Stop) -> None:
        super().__init__(message)
        self.stop = stop
