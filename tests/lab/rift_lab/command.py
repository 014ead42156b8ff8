"""The command line of the lab."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rift_lab import aarch64, cache, qemu, svm
from rift_lab.cache import LabError, say
from rift_lab.machine import Wishes

if TYPE_CHECKING:
    from collections.abc import Sequence

MACHINES = {"svm": svm.machine, "aarch64": aarch64.machine}

REPOSITORY = Path(__file__).resolve().parents[3]

TIME_LIMIT = 1800

TEST_LIMIT = 1200
"""Seconds for one test, unless PYTEST_TIMEOUT or pytest's arguments say otherwise: what takes seconds on a CPU takes
minutes on an emulated one, and more beside other work."""

_PASSED_ON = ("CI", "PYTEST_ADDOPTS", "PYTEST_TIMEOUT")
_PASSED_ON_PREFIXES = ("RIFT_", "HYPOTHESIS_")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/lab/run",
        usage="%(prog)s MACHINE [OPTION...] -- COMMAND [ARGUMENT...]",
        description="Run a command as root in an emulated machine with a /dev/kvm of its own. The repository is "
        "there, at the same path; what the command writes is gone afterwards.",
        epilog=f"The exit status is the command's, {qemu.TIME_OUT} when the time is over, {qemu.FAILED} when the "
        "machine failed. Environment variables CI, PYTEST_ADDOPTS, PYTEST_TIMEOUT, RIFT_* and HYPOTHESIS_* are passed "
        f"on. {cache.FOLDER_VARIABLE} names the folder that keeps what machines are made of. See docs/lab.md.",
    )
    parser.add_argument("machine", metavar="MACHINE", choices=MACHINES, help=" or ".join(MACHINES))
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, metavar="SECONDS", help="0: none; %(default)s")
    parser.add_argument("--boot-limit", type=float, default=qemu.BOOT_LIMIT, metavar="SECONDS", help="%(default)s")
    parser.add_argument("--cpu", help="as QEMU's -cpu")
    parser.add_argument("--cpus", type=int, metavar="NUMBER", help="CPUs of the machine")
    parser.add_argument("--memory", type=int, metavar="MIB", help="memory of the machine")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="pass on one more variable")
    parser.add_argument("--writable", type=Path, metavar="FOLDER", help="what is written below it stays")
    parser.add_argument("--prepare", action="store_true", help="only download and build what the machine needs")
    parser.add_argument("--verbose", action="store_true", help="show the machine's console on standard error")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit status."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    options, command = parser.parse_args(words[:end]), words[end + 1 :]
    if not command and not options.prepare:
        parser.error("no command given: put it behind --")
    qemu.terminate_on_signals()
    wishes = Wishes(options.cpu, options.memory, options.cpus)
    try:
        cache.clean()
        with qemu.run_folder() as folder:
            machine = MACHINES[options.machine](REPOSITORY, folder, wishes)
            if options.prepare:
                return 0
            return qemu.run(
                machine,
                folder,
                command,
                directory=_directory(),
                variables=_variables(options.env),
                writable=options.writable.resolve(strict=True) if options.writable else None,
                time_limit=options.time_limit,
                boot_limit=options.boot_limit,
                verbose=options.verbose,
            )
    except (LabError, OSError) as error:
        say(str(error))
        return qemu.FAILED
    except KeyboardInterrupt:
        return 130


def _directory() -> Path:
    """Where the command runs: here, if that is in the repository."""
    here = Path.cwd()
    return here if here.is_relative_to(REPOSITORY) else REPOSITORY


def _variables(names: Sequence[str]) -> dict[str, str]:
    tools = REPOSITORY / ".venv" / "bin"
    variables = {
        "PATH": f"{tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTEST_TIMEOUT": str(TEST_LIMIT),
    }
    names = (*_PASSED_ON, *names)
    variables |= {n: v for n, v in os.environ.items() if n in names or n.startswith(_PASSED_ON_PREFIXES)}
    variables.pop(cache.FOLDER_VARIABLE, None)
    return variables
