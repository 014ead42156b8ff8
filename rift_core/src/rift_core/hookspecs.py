"""All hooks, and nothing else. ``docs/hooks.md`` repeats each signature; a test compares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.plugin import hookspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from rift_core.backend import Binding, CpuFeatures, VCpu, Vm, VmSpec
    from rift_core.binary import Binary
    from rift_core.context import Context
    from rift_core.dispatch import Dispatcher
    from rift_core.errors import RiftError
    from rift_core.exits import Exit, ExitHandler, ExitResult, Stop
    from rift_core.guest_memory import GuestMemory
    from rift_core.isa import GuestFault, Isa
    from rift_core.machine import Machine
    from rift_core.memory import AddressSpace, Mapping, MemoryRegion
    from rift_core.plugin import PluginInfo, Section
    from rift_core.thread import Thread


@hookspec
def rift_plugin() -> PluginInfo | Sequence[PluginInfo]:  # type: ignore[empty-body]
    """Declare what this module provides.

    Called by: the catalog, once, at discovery, on each plugin by itself.  Implemented by: every plugin.
    Must import nothing heavy: ``rift plugins`` calls it for all that is installed.
    """


@hookspec(firstresult=True)
def rift_load_binary(path: Path, config: Section, isa: str) -> Binary | None:
    """Parse, check and relocate the executable at ``path``, or return None if it is of another format.

    ``isa`` is the ISA that the configuration asks for, or ``"auto"``: formats that hold images of several ISAs in one
    file choose by it. Core refuses a result of another ISA.

    Called by: the machine, once, before the VM exists.  Implemented by: loaders.
    Stops at the first result that is not None.

    :raises BinaryError: the format is ours but the file is damaged or cannot be loaded.
    """


@hookspec(firstresult=True)
def rift_binding(backend: str, isa: str) -> Binding | None:
    """Join one backend with one ISA, or return None for another pair.

    Called by: the machine, once.  Implemented by: whoever knows the pair.
    Stops at the first result that is not None.
    """


@hookspec(firstresult=True)
def rift_isa(config: Section, features: CpuFeatures) -> Isa | None:
    """Make the ISA object for a machine whose CPU has ``features``.

    Called by: the machine, once, after the backend's probe.  Implemented by: the chosen ISA.
    Stops at the first result that is not None.
    """


@hookspec(firstresult=True)
def rift_create_vm(config: Section, spec: VmSpec) -> Vm | None:
    """Create an empty virtual machine.

    Called by: the machine, once.  Implemented by: the chosen backend.
    Stops at the first result that is not None.

    :raises HypervisorError: the hypervisor refused; nothing is left open.
    """


@hookspec(firstresult=True)
def rift_configure_mmu(
    isa: Isa, mappings: Sequence[Mapping], tables: MemoryRegion, memory: GuestMemory
) -> AddressSpace | None:
    """Write page tables for ``mappings`` into ``tables``; later walks may read all of ``memory``.

    Called by: the machine, once, after the segments are in guest memory.  Implemented by: the chosen ISA;
    an extension may wrap it.  Stops at the first result that is not None.  Touches host memory only.

    :raises MappingError: overlapping, misaligned or unreachable ranges, or ``tables`` is too small.
    """


@hookspec
def rift_exit_handlers(config: Section, machine: Machine) -> Iterable[ExitHandler]:  # type: ignore[empty-body]
    """Make the exit handlers of one ``[[exit_handlers]]`` table.

    Called by: the machine, once for each table, on the plugin that the table names and on no other.
    Implemented by: exit handlers.
    """


@hookspec
def rift_machine_opened(machine: Machine, config: Section) -> object:
    """Take part in a machine that is complete; what it returns is what ``machine.extension(name)`` gives.

    No thread has started yet, unless ``machine.extend()`` adds the extension to a machine in use. The machine must
    not be kept, only its ``engine``: dropping the last reference to a machine closes it.

    Called by: the machine, once for each ``[[extensions]]`` table, on the plugin that the table names.
    Implemented by: extensions.
    """


@hookspec(firstresult=True)
def rift_run_vcpu(thread: Thread, vcpu: VCpu, dispatcher: Dispatcher) -> Stop | None:
    """Run the guest until it ends.

    The default enters the guest and dispatches its exits until one of them is answered with a Stop.
    Called by: the thread, once, on its own host thread.  Implemented by: core (last); an extension may wrap
    or replace it.  Stops at the first result that is not None.

    :raises GuestError: the guest did something that nobody answers.
    """


@hookspec
def rift_run_started(context: Context) -> None:
    """Learn that a vCPU is about to enter the guest for the first time in a run: of a thread, or of a call.

    Called by: the context, on its owner, its registers written.  Implemented by: extensions.
    """


@hookspec
def rift_run_ended(context: Context) -> None:
    """Learn that a run is over, however it ended.

    Called by: the context, on its owner; its registers need not be readable any more.  Implemented by: extensions.
    """


@hookspec(firstresult=True)
def rift_exit_unanswered(
    context: Context, exit: Exit, fault: GuestFault | None, describe: Callable[[], RiftError]
) -> ExitResult | None:
    """Answer an exit that nobody answers, or an exception that nothing in the guest handles; None: let the run end.

    ``fault`` is that exception. ``describe`` makes the error that the run ends with. The implementation may wait in
    ``context.serve()``, and should return the Stop that this gives.

    Called by: the context, on its owner, before the run ends.  Implemented by: extensions.
    Stops at the first result that is not None.
    """


@hookspec
def rift_thread_started(thread: Thread) -> None:
    """Learn that a guest thread is about to enter the guest for the first time.

    Called by: the thread, on its own host thread.  Implemented by: extensions.
    """


@hookspec
def rift_thread_stopped(thread: Thread, outcome: Stop | BaseException) -> None:
    """Learn how a guest thread ended; its registers can still be read.

    Called by: the thread, on its own host thread.  Implemented by: extensions.
    """


@hookspec
def rift_machine_closing(machine: Machine) -> None:
    """Let go of the machine: its threads have stopped, its VM is still there.

    Called by: the machine, once.  Implemented by: extensions.
    """
