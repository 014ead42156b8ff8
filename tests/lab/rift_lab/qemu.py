"""Runs a command in a machine: its output and its exit status come here."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rift_lab import cache
from rift_lab.cache import LabError, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rift_lab.machine import Machine

TIME_OUT = 124
FAILED = 125
"""Exit statuses of the lab itself: the time is over; the machine did not come up, or died."""

BOOT_LIMIT = 300
"""Seconds until the machine must be up: fifty times what it takes where nothing else runs."""

_PARAMETERS = (
    "quiet panic=-1 nokaslr mitigations=off audit=0 nowatchdog random.trust_cpu=on rcupdate.rcu_expedited=1 "
    "cryptomgr.notests lsm="
)


class Output:
    """A stream of the command: what is written to :attr:`write_end` is copied to a descriptor of this process."""

    def __init__(self, descriptor: int) -> None:
        self._read_end, self.write_end = os.pipe()
        self._target = descriptor
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        while data := os.read(self._read_end, 65536):
            with contextlib.suppress(BrokenPipeError):  # the reader has gone; the command goes on
                while data:
                    data = data[os.write(self._target, data) :]

    def finish(self) -> None:
        """Wait until everything has been copied; nobody else writes any more."""
        os.close(self.write_end)
        self._thread.join()
        os.close(self._read_end)


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A folder for one run, in the cache."""
    path = Path(tempfile.mkdtemp(prefix="run-", dir=cache.folder()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(
    machine: Machine,
    folder: Path,
    command: Sequence[str],
    *,
    directory: Path,
    variables: Mapping[str, str],
    writable: Path | None,
    time_limit: float,
    boot_limit: float,
    verbose: bool,
) -> int:
    """Run ``command`` in ``directory`` of the machine; its exit status.

    :param folder: of :func:`run_folder`.
    :param time_limit: seconds for boot and command; 0: any number.
    :param boot_limit: seconds for the boot.
    :raises LabError: the machine ended without a result, or did not boot.
    """
    _write_session(folder, machine, command, directory, variables, writable)
    start = time.monotonic()
    outputs = [Output(1), Output(2)]
    arguments = _arguments(machine, folder, writable, verbose, *(output.write_end for output in outputs))
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        pass_fds=[output.write_end for output in outputs],
        start_new_session=True,  # Ctrl-C comes to this process, which ends QEMU
    )
    try:
        if time_limit == 0 or boot_limit < time_limit:
            _wait_for_boot(process, folder, boot_limit)
        rest = max(start + time_limit - time.monotonic(), 0) if time_limit else None
        status = process.wait(rest)
    except subprocess.TimeoutExpired:
        say(f"the time limit of {time_limit:.0f} s is over")
        return TIME_OUT
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for output in outputs:
            output.finish()
    return _result(folder, status, start, verbose)


def _wait_for_boot(process: subprocess.Popen[bytes], folder: Path, limit: float) -> None:
    """Wait until guest/init has put the file system together, or QEMU has ended.

    :raises LabError: neither within ``limit`` seconds.
    """
    end = time.monotonic() + limit
    while not (folder / "booted").exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            return
        if time.monotonic() > end:
            raise LabError(f"the machine has not booted within {limit:.0f} s; --verbose shows its console")


def _result(folder: Path, status: int, start: float, verbose: bool) -> int:
    def text(name: str) -> str:
        try:
            return (folder / name).read_text().strip()
        except OSError:
            return ""

    if verbose:
        say(f"booted in {text('booted')} s, {time.monotonic() - start:.0f} s in all")
    if text("failed"):
        raise LabError(text("failed"))
    if not text("status"):
        raise LabError(f"the machine ended without a result (QEMU: {status}); --verbose shows its console")
    return int(text("status"))


def _write_session(
    folder: Path,
    machine: Machine,
    command: Sequence[str],
    directory: Path,
    variables: Mapping[str, str],
    writable: Path | None,
) -> None:
    """What the machine reads: see guest/init."""
    layers = []
    for number, layer in enumerate(machine.layers):
        tags = " ".join(f"layer{number}.{at}" for at in range(len(layer.folders)))
        layers.append(f"{layer.target} {tags}\n")
    (folder / "layers").write_text("".join(layers))
    (folder / "date").write_text(str(int(time.time())))
    if writable is not None:
        (folder / "writable").write_text(f"{writable}\n")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines += [
        f"cd {shlex.quote(str(directory))} || exit",
        "exec </dev/null >/dev/lab.out 2>/dev/lab.err",
        shlex.join(command),
        "status=$?",
        "exec >/dev/null 2>&1",  # closing the ports lets the last output out
        "echo $status >/run/lab/status",
    ]
    (folder / "session").write_text("\n".join(lines) + "\n")


def _arguments(machine: Machine, folder: Path, writable: Path | None, verbose: bool, out: int, error: int) -> list[str]:
    arguments = [
        machine.program,
        *machine.arguments,
        *("-smp", str(machine.cpus), "-m", str(machine.memory)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"),
        *("-kernel", str(machine.kernel / "kernel"), "-initrd", str(machine.kernel / "initramfs")),
        *("-append", " ".join((f"console={machine.console}", _PARAMETERS, *machine.parameters))),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci,max_ports=4"),
    ]
    # Descriptors are handed over by number: a pipe cannot be opened by name.
    ports = (("out", out), ("err", error))
    for number, (name, descriptor) in enumerate(ports, 1):
        arguments += ["-add-fd", f"fd={descriptor},set={number}"]
        arguments += ["-chardev", f"file,append=on,id={name},path=/dev/fdset/{number}"]
        arguments += ["-device", f"virtserialport,chardev={name},name={name}"]
    if verbose:
        arguments += ["-add-fd", f"fd={error},set=3", "-chardev", "file,append=on,id=console,path=/dev/fdset/3"]
    else:
        arguments += ["-chardev", "null,id=console"]
    arguments += ["-serial", "chardev:console"]
    shares = [("lab", folder, "")]
    for number, layer in enumerate(machine.layers):
        shares += [(f"layer{number}.{at}", path, ",readonly=on") for at, path in enumerate(layer.folders)]
    if writable is not None:
        shares.append(("writable", writable, ""))
    for number, (tag, path, options) in enumerate(shares):
        place = str(path).replace(",", ",,")
        arguments += ["-fsdev", f"local,id=share{number},path={place},security_model=none,multidevs=remap{options}"]
        arguments += ["-device", f"virtio-9p-pci,fsdev=share{number},mount_tag={tag}"]
    return arguments


def terminate_on_signals() -> None:
    """Have SIGTERM and SIGHUP end this process in order, as Ctrl-C does."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
