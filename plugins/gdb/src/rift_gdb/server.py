"""The server: one thread that waits for clients, for what they send, and for what guest threads come upon.

It holds the machine's engine and never the machine, so that dropping a machine still closes it.
"""

from __future__ import annotations

import logging
import select
import sys
import threading
import time
from typing import TYPE_CHECKING

from rift_core.errors import ConfigError, RiftError
from rift_gdb.address import Address, parse_address
from rift_gdb.connection import ClientGoneError, Connection, Event
from rift_gdb.errors import PacketError
from rift_gdb.exit_counter import ExitCounter
from rift_gdb.guest_side import Ended
from rift_gdb.listener import Listener
from rift_gdb.payloads import Payloads
from rift_gdb.refusals import Refusals
from rift_gdb.session import Session
from rift_gdb.stop_reply import end_reply, stop_reply
from rift_gdb.stops import SIGABRT, SIGTRAP, Plan, StopEvent
from rift_gdb.target import Target
from rift_gdb.waker import Waker

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from rift_core.engine import Engine
    from rift_gdb.config import GdbConfig
    from rift_gdb.connection import Incoming
    from rift_gdb.guest_thread import GuestThread

LOG = logging.getLogger("rift.gdb")

FIRST_THREAD_SECONDS = 1.0
"""How long a client that comes before any thread runs waits for one; its own patience ends after two seconds."""

_GOODBYE_SECONDS = 1.0  # in which a client that listens is told of the end
_CLOSE_SECONDS = 5.0
_AFTER = {"continue": "detached", "kill": "killed", "stop": "stopped"}


class Server:
    """Debuggers' access to one machine: what ``machine.debug()`` returns.

    :raises ConfigError: an address that others can reach, without ``allow_remote``.
    :raises ListenError: the address cannot be used.  :raises UnsupportedError: the ISA cannot be debugged.
    """

    def __init__(self, engine: Engine, config: GdbConfig) -> None:
        wanted = parse_address(config.listen)
        if not wanted.is_local and not config.allow_remote:
            raise ConfigError(
                f"debug.listen = {config.listen!r} lets other machines in, and the protocol has no authentication: "
                "listen on this machine's own address and use ssh -L, or set allow_remote = true"
            )
        self._config = config
        self._engine = engine
        self._closing = False
        self._session: Session | None = None
        self.counter = ExitCounter()
        self.payloads = Payloads(engine)
        self._last: tuple[GuestThread, StopEvent] | None = None
        self._came = threading.Condition()
        self._clients = 0
        self._refusals = Refusals()
        self._waker = Waker()
        try:
            self.target = Target(engine, self._waker.wake)
            self._listener = Listener(wanted)
        except BaseException:
            self._waker.close()
            raise
        self.target.holds_faults = config.hold_faults
        if config.wait:  # nothing can fail any more: nobody would open the gate again
            self.target.hold()
        if not wanted.is_local:
            print(
                f"rift: warning: whoever can reach {self.address} controls the guest: the debugger's protocol has no "
                "authentication",
                file=sys.stderr,
            )
        self._thread = threading.Thread(target=self._run, name="rift-gdb", daemon=True)
        self._thread.start()

    # -- for users -------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """Where it listens: ``str`` of it is what debuggers take."""
        return self._listener.address

    @property
    def connected(self) -> bool:
        """Whether a debugger is there."""
        return self._session is not None

    @property
    def clients(self) -> int:
        """How many debuggers have come so far."""
        return self._clients

    def add_payload(self, path: str | Path, address: int) -> None:
        """Tell debuggers of an executable that was put into guest memory beside the machine's own.

        :param address: where its first segment stands.
        :raises ConfigError: there is no such file, or it is no address.
        """
        self.payloads.add(path, address)
        self._waker.wake()

    def wait_for_client(self, timeout: float | None = None) -> bool:
        """Wait until a debugger has come; False: it has not, in ``timeout`` seconds."""
        with self._came:
            return self._came.wait_for(lambda: self._clients > 0, timeout)

    def __repr__(self) -> str:
        return f"<debug server at {self.address}, {'a client is' if self.connected else 'nobody is'} connected>"

    def close(self) -> None:
        """Let the guest go on without a debugger, and stop listening."""
        if self._closing:
            return
        self._closing = True
        self._waker.wake()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(_GOODBYE_SECONDS)
        session = self._session
        if self._thread.is_alive() and session is not None:
            session.connection.hang_up()  # it does not read what the thread sends
            self._thread.join(_CLOSE_SECONDS)

    @property
    def closing(self) -> bool:
        """Whether nobody is to be served any more."""
        return self._closing

    def abandon(self) -> None:
        """This is a forked child: let go of the parent's sockets, or they would stay open when it closes them."""
        self._closing = True
        self._waker.abandon()
        self._listener.abandon()
        self._refusals.abandon()
        if self._session is not None:
            self._session.connection.abandon()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                for descriptor in self._wait():
                    if descriptor == self._waker.descriptor:
                        self._waker.rest()
                        self.target.idle()
                    else:
                        accepted = self._listener.accept(descriptor)
                        if accepted is not None:
                            self._serve(*accepted)
        finally:
            self.target.detach()
            self._listener.close()
            self._waker.close()

    def _wait(self) -> list[int]:
        """Descriptors that can be read; none: look again."""
        poll = select.poll()
        descriptors, seconds = self._listener.descriptors()
        for descriptor in (self._waker.descriptor, *descriptors):
            poll.register(descriptor, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll(None if seconds is None else 1000 * seconds)]

    def _serve(self, client: socket.socket, peer: str) -> None:
        """One client, from hello to goodbye."""
        connection = Connection(client)
        session = self._session = Session(self, connection, peer)
        LOG.info("a debugger has come from %s", peer)
        try:
            self.target.attach()
            self._last = None
            with self._came:
                self._clients += 1
                self._came.notify_all()
            self._converse(session)
        except ClientGoneError as gone:
            LOG.info("the debugger has gone: %s", gone)
        except Exception:  # a bug: the guest is let go as if the client had gone, and the next one can come
            LOG.exception("the debugger's session has failed")
        finally:
            self._leave(session)
            session.close()
            self._session = None  # only now: whoever sees that nobody is connected finds the guest as it was left
            self._refusals.close()
            connection.close()

    def _converse(self, session: Session) -> None:
        while not session.over and not self._closing:
            others, seconds = self._listener.descriptors()
            watched = [self._waker.descriptor, *others, *self._refusals.descriptors]
            incoming = session.connection.next(watched, seconds)
            if incoming.event is Event.READABLE and incoming.source != self._waker.descriptor:
                # Somebody else comes. What this client has sent before, such as its goodbye, comes first.
                before = session.connection.next((), 0)
                if before.event is Event.TIMEOUT:
                    self._refuse(session, incoming.source)
                incoming = before
            self._deal_with(session, incoming)
            if session.awaiting:
                self._tell(session)

    def _deal_with(self, session: Session, incoming: Incoming) -> None:
        event = incoming.event
        if event is Event.PACKET:
            session.handle(incoming.data)
        elif event is Event.INTERRUPT:
            if session.awaiting:
                self.target.interrupt()
        elif event is Event.CLOSED:
            raise ClientGoneError("it has closed the connection")
        elif event is Event.OVERSIZED:
            limit = session.connection.limit
            session.connection.send(session.error(PacketError(f"a packet has at most {limit} bytes")))
        elif event is Event.DAMAGED:
            session.connection.send(session.error(PacketError("the packet is damaged")))
        elif event is Event.READABLE:
            self._waker.rest()
            if session.awaiting and session.has_news:
                self.target.interrupt("payloads")

    def _leave(self, session: Session) -> None:
        """What becomes of the guest when its client goes."""
        what = session.after or _AFTER[self._config.on_disconnect]
        if self._closing:
            what = "detached"
        if what == "killed":
            self.target.kill()
        elif what == "detached":
            self.target.detach()
        else:
            self.target.interrupt()
            self.target.breakpoints.clear()

    def _refuse(self, session: Session, descriptor: int) -> None:
        """A second client comes, or one that has come says something."""
        if descriptor in self._refusals.descriptors:
            self._refusals.answer(descriptor, f"another debugger, from {session.peer}, is connected already")
            return
        accepted = self._listener.accept(descriptor)
        if accepted is not None:
            self._refusals.add(accepted[0])

    # -- stops -----------------------------------------------------------------------------------

    def resume(
        self, session: Session, plans: dict[GuestThread, Plan], rest: Plan | None, deliver: list[GuestThread]
    ) -> None:
        """Let the guest go on; the client waits for a stop from now on.

        :raises PacketError: it cannot.
        """
        if session.awaiting:
            raise PacketError("the guest goes on already")
        if session.has_news and self.target.threads:
            session.connection.send(stop_reply(session, session.thread(), StopEvent("payloads", 0)))
            return
        session.hide_images()
        self.target.resume(plans, rest, deliver)
        session.awaiting = True

    def _tell(self, session: Session) -> None:
        """Tell the client of a stop, if there is one."""
        try:
            found = self.target.collect()
        except (PacketError, RiftError) as error:
            session.say(f"rift: the guest cannot go on as it should: {error}\n")
            self.target.interrupt()
            found = self.target.collect()
        if found is None:
            return
        session.awaiting = False
        if isinstance(found, Ended):
            self._tell_end(session, found)
            return
        thread, stop = found
        self._last = found
        if stop.text:
            session.say(f"rift: thread {thread.context.name}: {stop.text}\n")
        session.selected = thread.number
        session.connection.send(stop_reply(session, thread, stop))

    def _tell_end(self, session: Session, ended: Ended) -> None:
        threads = self.target.threads
        if not threads:
            last = self.last_stop_of(ended.thread)
            signal = last.signal if last is not None and last.reason == "fault" else SIGABRT
            session.connection.send(end_reply(self.target.verdict(ended), signal))
            session.over, session.after = True, "detached"
        elif "no-resumed" in session.features:
            session.connection.send(b"N")
        else:  # a client that does not know N is shown one of the threads that are left
            session.connection.send(stop_reply(session, threads[0], StopEvent("attach", 0)))

    def first_stop(self, session: Session) -> bytes:
        """The answer to ``?``: a client has come, and the machine stands."""
        target = self.target
        deadline = time.monotonic() + FIRST_THREAD_SECONDS
        while not any(t.held for t in target.threads) and time.monotonic() < deadline:
            time.sleep(0.01)
        pending = next((t for t in target.threads if t.stop is not None and t.held), None)
        if self._last is not None and self._last[0] in target.threads:
            return stop_reply(session, *self._last)
        if pending is not None and pending.stop is not None:
            self._last = (pending, pending.stop)
            pending.stop = None
            session.selected = pending.number
            return stop_reply(session, *self._last)
        threads = target.threads
        if not threads:
            return b"W00"
        thread = next((t for t in threads if t.held), threads[0])  # all may be inside exit handlers
        session.selected = thread.number
        self._last = (thread, StopEvent("attach", SIGTRAP))
        return stop_reply(session, *self._last)

    def last_stop_of(self, thread: GuestThread) -> StopEvent | None:
        """Why it has stopped, if it is the one that was told last."""
        return self._last[1] if self._last is not None and self._last[0] is thread else None
