"""What debuggers leave behind when they, or the threads, go at a bad moment: nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core import Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Debugged

    Debug = Callable[..., Debugged]

SECONDS = 20.0


def test_a_thread_that_ended_with_debug_registers_set_starts_again_without(debug: Debug) -> None:
    """Its vCPU is parked by then: they must have been cleared before."""
    debugged = debug("main")
    client = debugged.begin()
    assert client.ask(f"Z1,{debugged.at('twice'):x},1") == b"OK"
    client.stop("vCont;c")
    thread = debugged.machine.threads[0]
    thread.kill()
    assert thread.join(SECONDS) == Stop(0, "killed")
    assert client.ask("D") == b"OK"
    assert thread.start(4).join(SECONDS).status == 12
