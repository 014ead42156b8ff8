"""Tools on guests: ``rift trace``, ``rift profile``, ``rift compare``.

The extension ``steps`` is what they stand on: it makes every vCPU run one instruction at a time, or as it is, and
hands each step and each exit to whoever has asked with :meth:`Steps.follow`.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from pydantic import Field

from rift_core.plugin import PluginInfo, Section, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.errors import RiftError
    from rift_core.exits import Exit, ExitResult, Stop
    from rift_core.isa import GuestFault
    from rift_core.machine import Machine
    from rift_core.thread import Thread
    from rift_tools.steps import Steps

_followed: weakref.WeakKeyDictionary[Engine, Steps] = weakref.WeakKeyDictionary()


class StepsConfig(Section):
    """``[[extensions]] name = "steps"``; the commands add it themselves."""

    single: bool = Field(default=True, description="Whether vCPUs run one instruction at a time.")


@hookimpl
def rift_plugin() -> PluginInfo:
    return PluginInfo("extension", "steps", "Each step and exit of a guest, for tools", StepsConfig)


@hookimpl
def rift_machine_opened(machine: Machine, config: StepsConfig) -> Steps:
    from rift_tools.steps import Steps

    steps = _followed[machine.engine] = Steps(machine.engine, config.single)
    return steps


@hookimpl
def rift_run_started(context: Context) -> None:
    steps = _followed.get(context.engine)
    if steps is not None:
        steps.run_started(context)


@hookimpl
def rift_exit_unanswered(
    context: Context, exit: Exit, fault: GuestFault | None, describe: Callable[[], RiftError]
) -> ExitResult | None:
    steps = _followed.get(context.engine)
    return steps.unanswered(context, exit, fault) if steps is not None else None


@hookimpl
def rift_thread_stopped(thread: Thread, outcome: Stop | BaseException) -> None:
    steps = _followed.get(thread.engine)
    if steps is not None:
        steps.run_over(thread.context, outcome)
