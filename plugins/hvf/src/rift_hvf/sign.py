"""``rift macos-sign``: gives the venv an interpreter that may use Hypervisor.framework.

macOS lets a program use the hypervisor whose main executable is signed with an entitlement; an ad hoc signature is
enough, and no account is needed. The Python that a venv leads to is not ours to sign, so the venv gets a copy, with the
entitlement ``com.apple.security.hypervisor`` and no other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rift_hvf.dylibs import links_for, references
from rift_hvf.interpreter import Interpreter, SigningError, interpreter_of
from rift_hvf.system import ENTITLEMENT, is_macos

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIME_LIMIT = 120.0
_SAY_PREFIX = "import sys; print(sys.prefix)"


@click.command("macos-sign")
@click.option(
    "--venv", "folder", type=click.Path(path_type=Path, file_okay=False), help="The venv; default: the one in use."
)
@click.option("--if-needed", is_flag=True, help="Do nothing where the interpreter has the entitlement already.")
def command(folder: Path | None, if_needed: bool) -> None:
    """Give the venv a Python that may use the hypervisor of macOS.

    Copies the interpreter into the venv and signs the copy ad hoc with the entitlement com.apple.security.hypervisor.
    The Python that the venv was made with is not changed.
    """
    if not is_macos():
        raise SigningError("signing is a matter of macOS: nothing to do here")
    venv = _venv(folder)
    if if_needed and is_signed(interpreter_of(venv).place):
        return
    interpreter = sign(venv)
    click.echo(f"{interpreter.place} is a copy of {interpreter.binary}, signed with {ENTITLEMENT}")


def _venv(folder: Path | None) -> Path:
    if folder is not None:
        return folder.absolute()
    if sys.prefix == sys.base_prefix:
        raise SigningError("Rift does not run in a venv: make one with `python3 -m venv .venv`, or give --venv")
    return Path(sys.prefix)


def sign(venv: Path) -> Interpreter:
    """Put a signed copy of its interpreter into the venv; its other names lead there.

    :raises SigningError: the interpreter cannot be found, copied or signed, or its copy does not start; the venv is as
        it was then, but for symbolic links to libraries.
    """
    interpreter = interpreter_of(venv)
    found = references(interpreter.binary.read_bytes())
    if found is None:
        raise SigningError(f"{interpreter.binary} is no 64-bit executable of macOS")
    links = links_for(found, interpreter.binary, interpreter.place)
    for place, original in links.items():
        _link(place, original, venv)
    copy = interpreter.place.with_name(f".{interpreter.place.name}.signing")
    try:
        shutil.copyfile(interpreter.binary, copy)  # without its extended attributes: quarantine is one
        copy.chmod(0o755)
        _codesign(copy)
        _try(copy, venv)
        copy.replace(interpreter.place)  # a new file: macOS remembers the signature of an old one
    except OSError as error:
        raise SigningError(f"{interpreter.binary} cannot be copied to {interpreter.place}: {error}") from error
    finally:
        copy.unlink(missing_ok=True)
    for name in interpreter.names:
        name.unlink()
        name.symlink_to(interpreter.place.name)
    return interpreter


def _link(place: Path, original: Path, venv: Path) -> None:
    """A symbolic link in the venv, unless the library is there."""
    if place.exists() and os.path.realpath(place) == os.path.realpath(original):
        return
    if not place.is_relative_to(venv):
        raise SigningError(
            f"this Python looks for {original.name} relative to itself, which for a copy is {place}, outside of the "
            "venv: use the Python of python.org, Homebrew, uv, pyenv or conda"
        )
    if os.path.lexists(place) and not place.is_symlink():
        raise SigningError(f"{place} is in the way: the interpreter's {original.name} must be found there")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(original)
    except OSError as error:
        raise SigningError(f"{place} cannot be linked to {original}: {error}") from error


def _run(arguments: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "__PYVENV_LAUNCHER__"}
    return subprocess.run(
        [str(argument) for argument in arguments],
        capture_output=True, text=True, errors="replace", timeout=_TIME_LIMIT, check=False, env=environment,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _codesign(path: Path) -> None:
    with as_file(files("rift_hvf") / "entitlements.plist") as entitlements:
        try:
            done = _run(["codesign", "--force", "--sign", "-", "--entitlements", entitlements, path])
        except FileNotFoundError:
            raise SigningError("codesign is missing: xcode-select --install") from None
        except subprocess.TimeoutExpired:
            raise SigningError(f"codesign has not come to an end in {_TIME_LIMIT:.0f} s") from None
    if done.returncode:
        raise SigningError(f"codesign failed with status {done.returncode}: {done.stderr.strip()}")
    if not is_signed(path):
        raise SigningError(f"codesign was content, but {path} does not have the entitlement {ENTITLEMENT}")


def is_signed(path: Path) -> bool:
    """Whether an executable has the entitlement."""
    try:
        done = _run(["codesign", "--display", "--entitlements", "-", "--xml", path])
        if done.returncode:  # --xml is younger than macOS 11
            done = _run(["codesign", "--display", "--entitlements", ":-", path])
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and ENTITLEMENT in done.stdout


def _try(copy: Path, venv: Path) -> None:
    """Start the copy: macOS ends what is badly signed, and dyld what lacks a library."""
    try:
        done = _run([copy, "-c", _SAY_PREFIX])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SigningError(f"the signed copy does not start: {error}") from error
    if done.returncode:
        raise SigningError(
            f"the signed copy does not start (status {done.returncode}): {done.stderr.strip() or 'it said nothing'}"
        )
    prefix = done.stdout.strip()
    if os.path.realpath(prefix) != os.path.realpath(venv):
        raise SigningError(f"the signed copy takes {prefix} for its venv, not {venv}")
