"""Fixtures of the debugger's tests: the payload, machines under a server, and clients."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rift_core import Machine, Stop, open_machine
from rift_core.assembly import host_isa
from rift_core.build import build
from rift_core.catalog import Catalog
from rift_core.testing.tools import require_backend, require_macho_compiler, require_payload_compiler, session

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for gdb_rsp and debuggers: importlib mode does not do it

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gdb_rsp import Client

    from rift_core.build import Format
    from rift_core.thread import Thread
    from rift_gdb.server import Server

MACHINES = [("kvm", host_isa()), ("emulator", "x86_64"), ("emulator", "aarch64")]
SECONDS = 20.0


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``built(isa)``: the payload, made once."""
    folder = tmp_path_factory.mktemp("payload")
    made: dict[tuple[str, bool, Format], Path] = {}

    def make(isa: str, *, pie: bool = False, format: Format = "elf") -> Path:
        if (isa, pie, format) not in made:
            (require_payload_compiler if format == "elf" else require_macho_compiler)(isa)
            output = folder / f"payload-{isa}{'-pie' if pie else ''}.{format}"
            build(HERE / "payload.c", output, isa, optimize="1", pie=pie, format=format)
            made[isa, pie, format] = output
        return made[isa, pie, format]

    return make


@dataclass
class Debugged:
    """A machine with a server, and its clients."""

    machine: Machine
    server: Server
    isa: str
    waits: bool = False  # threads wait at their entry for a client
    clients: list[Client] = field(default_factory=list)

    def start(self, *arguments: int) -> Thread:
        """Start all threads, and have them where a client finds them; the first one."""
        threads = self.machine.threads
        for position, thread in enumerate(threads):
            thread.start(*(arguments if position == 0 else ()))
        deadline = time.monotonic() + SECONDS
        while self.waits and not all(thread.context.held for thread in threads) and time.monotonic() < deadline:
            time.sleep(0.002)
        return threads[0]

    def connect(self, **options: Any) -> Client:
        """One more client, which has been told why the machine stands."""
        from gdb_rsp import Client

        client = Client(self.server.address, **options)
        self.clients.append(client)
        return client

    def begin(self, *arguments: int) -> Client:
        """Start all threads, which wait at their entry, and connect; the answer to ``?`` has been seen."""
        self.start(*arguments)
        client = self.connect()
        client.stop("?")
        return client

    def join(self) -> Stop:
        """How the first thread has ended."""
        return self.machine.threads[0].join(SECONDS)

    def at(self, symbol: str) -> int:
        """Its address."""
        return self.machine.symbol(symbol).address

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Numbers of the registers that have a role, and of all others by name."""
        from rift_gdb.registers import Layout

        layout = Layout(self.machine.isa, [register.name for register in self.machine.isa.registers])
        found = {row.view.name: row.number for row in layout.rows}
        found.update({row.view.role: row.number for row in layout.rows if row.view.role})
        return found

    def pc(self, stop: dict[str, Any]) -> int:
        """Where a stop reply says the thread stands."""
        return int.from_bytes(bytes.fromhex(stop[f"{self.numbers['pc']:02x}"]), "little")


@pytest.fixture(params=MACHINES, ids=[f"{backend}-{isa}" for backend, isa in MACHINES])
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend and an ISA that work here."""
    backend, isa = request.param
    require_backend(backend)
    if not Catalog.installed().has("binding", f"{backend}/{isa}"):
        session().skip(f"backend {backend} has no binding for {isa}")
    return backend, isa


@pytest.fixture
def debug(kind: tuple[str, str], built: Callable[..., Path]) -> Iterator[Callable[..., Debugged]]:
    """``debug(entry, ..., privilege=, wait=, ...)``: a machine with a thread for each entry."""
    backend, isa = kind
    made: list[Debugged] = []

    def make(
        *entries: str,
        privilege: str = "supervisor",
        pie: bool = False,
        format: Format = "elf",
        sections: Any = None,
        **settings: Any,
    ) -> Debugged:
        options = {"listen": "0", "wait": True, **settings}
        configuration = {
            "binary": {"path": str(built(isa, pie=pie, format=format))},
            "backend": backend,
            "threads": [{"name": entry, "entry": entry, "privilege": privilege} for entry in entries],
            "debug": options,
            **(sections or {}),
        }
        machine = open_machine(configuration)
        made.append(Debugged(machine, machine.debug(), isa, options["wait"]))
        return made[-1]

    yield make
    for each in made:
        for client in each.clients:
            client.close()
        each.machine.close()


@pytest.fixture(params=["system", "pypi"])
def gdb(request: pytest.FixtureRequest) -> str:
    """A GDB: the distribution's, then PyPI's."""
    from debuggers import find_debugger

    return find_debugger("gdb", request.param)


@pytest.fixture(params=["system", "pypi"])
def lldb(request: pytest.FixtureRequest) -> str:
    """An LLDB: the distribution's, then PyPI's."""
    from debuggers import find_debugger

    return find_debugger("lldb", request.param)


@pytest.fixture(params=["pypi"])
def newest_gdb(request: pytest.FixtureRequest) -> str:
    """PyPI's, for what Debian's is too old for."""
    from debuggers import find_debugger

    return find_debugger("gdb", request.param)
