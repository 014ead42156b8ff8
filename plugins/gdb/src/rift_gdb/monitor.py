"""The monitor's commands. Other plugins add theirs with the optional hook ``rift_gdb_monitor_commands``.

It is marked ``@hookimpl(optionalhook=True)``, takes no arguments and yields ``(usage, help, function)``: the first word
of the usage is the command's name, and the function gets the machine's engine and the words behind it, and returns
text. All vCPUs are stopped meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.errors import RiftError
from rift_core.memory import Gva
from rift_core.report import describe_address, describe_walk
from rift_gdb.errors import PacketError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.isa_debug import DebugView
    from rift_gdb.session import Session

    Command = Callable[[Session, list[str]], str]

HOOK = "rift_gdb_monitor_commands"
_MOST_LINES = 2000
_COMMANDS: dict[str, tuple[str, str, Command]] = {}


def command(usage: str, help: str) -> Callable[[Command], Command]:
    """Register a command; the first word of ``usage`` is its name."""

    def register(function: Command) -> Command:
        _COMMANDS[usage.split()[0]] = (usage, help, function)
        return function

    return register


def run_command(session: Session, line: str) -> str:
    """Run a line; its text."""
    words = line.split() or ["help"]
    found = commands(session).get(words[0])
    if found is None:
        return f"there is no command {words[0]!r}; try: monitor help\n"
    try:
        return found[2](session, words[1:])
    except (PacketError, RiftError, ValueError) as error:
        return f"{words[0]}: {error}\n"


def commands(session: Session) -> dict[str, tuple[str, str, Command]]:
    """Rift's own and those of other plugins; a name that is taken keeps its first owner."""
    known = dict(_COMMANDS)
    engine = session.target.engine
    for answer in engine.hooks.call_optional(HOOK):
        for usage, help, function in answer:
            name = usage.split()[0]

            def call(session: Session, words: list[str], function: Callable[..., str] = function) -> str:
                try:
                    return function(session.target.engine, words)
                except Exception as error:  # a session outlives other people's mistakes
                    return f"{words_of(error)}\n"
                finally:
                    session.connection.forget_pages()  # it may have changed the page tables

            known.setdefault(name, (usage, help, call))
    return known


def words_of(error: Exception) -> str:
    """What to tell of it: of Rift's own errors and wrong values the message is enough."""
    return str(error) if isinstance(error, RiftError | ValueError) else f"{type(error).__name__}: {error}"


def _address(session: Session, text: str) -> int:
    """A number, a symbol, or a register with a dollar sign.

    :raises ValueError: none of these.
    """
    engine = session.target.engine
    if text.startswith("$"):
        row = session.target.layout.find(text[1:])
        if row is not None:
            return session.target.image(session.thread()).values[row.register.name]
    symbol = engine.symbols.find(text)
    if symbol is not None:
        return symbol.address
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{text!r} is no address, symbol or $register") from None


@command("help", "This list.")
def show_help(session: Session, words: list[str]) -> str:
    rows = commands(session).values()
    width = max(len(usage) for usage, _, _ in rows)
    return "".join(f"{usage:<{width}}  {help}\n" for usage, help, _ in rows)


@command("threads", "Guest threads and calls: vCPU, privilege level, where they stand, exits.")
def show_threads(session: Session, words: list[str]) -> str:
    lines = []
    for thread in session.target.threads:
        vcpu = thread.context.vcpu
        exits = vcpu.exit_count if vcpu is not None else 0
        if thread.held:
            place = session.target.place(thread)
            where = f"{place.privilege:<10}  {describe_address(session.target.engine.symbols, place.pc)}"
        else:
            where = f"{thread.context.privilege:<10}  inside an exit handler"
        lines.append(
            f"{thread.number:>3}  {thread.context.name:<12}  vCPU {thread.context.index}  {where}  {exits} exits"
        )
    return "\n".join(lines) + "\n"


@command("pt ADDRESS", "Walk the page tables of the selected thread: each level's entry.")
def show_walk(session: Session, words: list[str]) -> str:
    if len(words) != 1:
        raise ValueError("give an address")
    address = _address(session, words[0])
    walk = session.target.view(session.thread()).walk(address)
    lines = [
        f"{step.level:<8} entry at guest-physical {step.entry_address:#014x}: {step.entry:#018x}" for step in walk.steps
    ]
    lines.append(f"{address:#x}: {describe_walk(walk)}")
    if walk.physical is not None:
        marks = [name for name, on in (("accessed", walk.accessed), ("dirty", walk.dirty)) if on]
        lines.append(f"caching {walk.caching.name.lower()}; {', '.join(marks) or 'neither accessed nor dirty'}")
    return "\n".join(lines) + "\n"


@command("map", "What the machine's page tables map.")
def show_map(session: Session, words: list[str]) -> str:
    lines = []
    for run in session.target.map.runs():
        session.check()
        size = run.end - run.start
        line = f"{run.start:#018x}-{run.end:#018x}  {run.permissions}  {size:>#12x}  -> {run.physical:#x}  {run.name}"
        lines.append(line.rstrip())
        if len(lines) >= _MOST_LINES:
            lines.append("... and more")
            break
    return "\n".join(lines) + "\n"


@command("exits [on|off]", "How often each vCPU has left the guest; on: count by kind those that reach Python.")
def show_exits(session: Session, words: list[str]) -> str:
    counter = session.server.counter
    if words == ["on"]:
        counter.start(session.target.engine.dispatcher)
        return "counting exits by kind\n"
    if words == ["off"]:
        counter.stop()
        return "not counting any more\n"
    if words:
        raise ValueError("on or off, or nothing")
    lines = []
    for thread in session.target.threads:
        vcpu = thread.context.vcpu
        lines.append(f"{thread.context.name:<12}  {vcpu.exit_count if vcpu is not None else 0}")
    lines += [f"{kind.name:<16}  {count}" for kind, count in sorted(counter.counts.items())]
    return "\n".join(lines) + "\n"


def _fields(view: DebugView, value: int) -> str:
    words = []
    for field in view.fields:
        part = value >> field.first & (1 << field.last - field.first + 1) - 1
        if part:
            words.append(field.name if field.first == field.last else f"{field.name}={part}")
    return f"  [{' '.join(words)}]" if view.fields else ""


@command("regs system", "System registers of the selected thread, bits by name.")
def show_registers(session: Session, words: list[str]) -> str:
    if words not in ([], ["system"]):
        raise ValueError("the word behind it is: system")
    image = session.target.image(session.thread())
    lines = []
    for row in image.layout.rows:
        value = image.values.get(row.register.name)
        if row.view.group == "system" and value is not None:
            lines.append(f"{row.view.name:<14} {value:#018x}{_fields(row.view, value)}")
    return "\n".join(lines) + "\n"


@command("dirty", "Pages that were written to since this was asked last.")
def show_dirty(session: Session, words: list[str]) -> str:
    engine = session.target.engine
    if not engine.isa.keeps_dirty:
        return "this CPU does not note which pages are written to\n"
    runs: list[tuple[int, int]] = []
    with engine.edits:
        for half in engine.isa.virtual_ranges:
            pages = engine.space.accessed_dirty(Gva(half.start), half.stop - half.start, clear=True)
            for page, size, _, dirty in pages:
                if dirty and runs and runs[-1][1] == page:
                    runs[-1] = (runs[-1][0], page + size)
                elif dirty:
                    runs.append((page, page + size))
        engine.vm.flush_translations()
    session.connection.forget_pages()
    name_of = session.target.map.name_of
    lines = [f"{first:#018x}-{end:#018x}  {name_of(first)}".rstrip() for first, end in runs[:_MOST_LINES]]
    return "\n".join(lines) + "\n" if lines else "no page was written to\n"


@command("reset", "Load the image again and put every thread to its entry.")
def reset(session: Session, words: list[str]) -> str:
    target = session.target
    engine = target.engine
    engine.reload_image()
    done = []
    for configured in engine.threads:
        thread = next((t for t in target.threads if t.context is configured.context), None)
        if thread is not None:
            target.ask(thread, configured.enter_again)
            thread.forget()
            thread.stop = None
            done.append(configured.name)
    session.hide_images()
    return f"the image is loaded again; at their entry: {', '.join(done) or 'no thread, none is running'}\n"


@command("phys on|off", "Memory addresses are guest-physical, or are translated.")
def set_physical(session: Session, words: list[str]) -> str:
    if words not in ([], ["on"], ["off"]):
        raise ValueError("on or off")
    if words:
        session.physical = words == ["on"]
        session.connection.forget_pages()
    return f"memory addresses are {'guest-physical' if session.physical else 'guest-virtual'}\n"


@command("means", "How this backend lets its guests be debugged.")
def show_means(session: Session, words: list[str]) -> str:
    return "\n".join(session.target.means.describe()) + "\n"
