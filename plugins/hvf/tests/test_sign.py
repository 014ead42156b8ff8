"""``rift macos-sign`` over made-up trees of every kind of Python, with a made-up codesign."""

from __future__ import annotations

import os
import plistlib
import stat
import struct
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from rift_core.cli import group
from rift_core.testing.tools import require_tool
from rift_hvf import sign as signing
from rift_hvf.dylibs import references
from rift_hvf.interpreter import SigningError, interpreter_of

if TYPE_CHECKING:
    from collections.abc import Sequence

LOAD_DYLIB, RPATH = 0xC, 0x8000_001C
SYSTEM = "/usr/lib/libSystem.B.dylib"

CODESIGN = """#!/bin/sh
# Signs by writing the entitlements behind the executable; shows what it finds there.
echo "codesign $*" >> "{log}"
case "$1" in
    --force) [ "$2 $3 $4" = "--sign - --entitlements" ] || exit 64; {sign} ;;
    --display) [ "$4" = --xml ] && {old} ; for last; do :; done; tail -n +2 "$last" | strings ;;
    *) exit 64 ;;
esac
"""


def macho(libraries: Sequence[str] = (SYSTEM,), folders: Sequence[str] = (), slices: int = 1) -> bytes:
    """An executable with these references, thin or universal."""
    commands = [command(LOAD_DYLIB, name, 24) for name in libraries] + [command(RPATH, name, 12) for name in folders]
    body = b"".join(commands)
    thin = struct.pack("<8I", 0xFEED_FACF, 0x0100_000C, 0, 2, len(commands), len(body), 0, 0) + body + b"\n"
    if slices == 1:
        return thin
    offsets = [0x1000 * (at + 1) for at in range(slices)]
    fat = struct.pack(">2I", 0xCAFE_BABE, slices)
    fat += b"".join(struct.pack(">2i3I", 0x0100_000C, 0, offset, len(thin), 12) for offset in offsets)
    for offset in offsets:
        fat = fat.ljust(offset, b"\0") + thin
    return fat


def command(kind: int, text: str, header: int) -> bytes:
    size = (header + len(text) + 8) & ~7
    return struct.pack("<3I", kind, size, header).ljust(header, b"\0") + text.encode().ljust(size - header, b"\0")


class Tree:
    """A folder with a Python installation and a venv made with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / "project" / ".venv"
        self.log = folder / "codesign.log"

    def file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755)
        return path

    def link(self, name: str, target: str | Path) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        return path

    def make_venv(self, python: Path, version: str = "3.12", *, first: str = "") -> None:
        """As ``python -m venv`` does it: one name leads out, the others lead to it."""
        programs = self.venv / "bin"
        programs.mkdir(parents=True)
        first = first or f"python{version}"
        (programs / first).symlink_to(python)
        for name in ("python", "python3", f"python{version}"):
            if name != first:
                (programs / name).symlink_to(first)
        self.configure(python, version)

    def configure(self, python: Path, version: str) -> None:
        (self.venv / "pyvenv.cfg").write_text(
            f"home = {python.parent}\ninclude-system-site-packages = false\nversion = {version}.4\n"
        )

    def codesign(self, *, sign: str = 'cat "$5" >> "$6"', old: str = "true") -> None:
        self.file("programs/codesign", CODESIGN.format(log=self.log, sign=sign, old=old).encode())

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def everything(self) -> dict[str, object]:
        """Names and contents of the venv."""
        paths = sorted(self.venv.rglob("*"))
        return {str(p): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in paths if not p.is_dir()}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    for tool in ("sh", "strings", "tail"):
        require_tool(tool)
    made = Tree(tmp_path)
    made.codesign()
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(signing, "is_macos", lambda: True)
    monkeypatch.setattr(signing, "_try", lambda copy, venv: None)
    return made


def framework(tree: Tree, root: str, version: str = "3.12") -> tuple[Path, Path]:
    """A framework build: launcher and interpreter."""
    base = f"{root}/Python.framework/Versions/{version}"
    launcher = tree.file(f"{base}/bin/python{version}", macho([f"/{base}/Python"]) + b"launcher")
    application = tree.file(f"{base}/Resources/Python.app/Contents/MacOS/Python", macho([f"/{base}/Python"]) + b"real")
    tree.link(f"{base}/bin/python3", f"python{version}")
    return launcher, application


def check_signed(tree: Tree, binary: Path) -> None:
    """The venv has a signed copy of ``binary``, under all names, and nothing else was touched."""
    before = binary.read_bytes()
    interpreter = signing.sign(tree.venv)
    assert interpreter.binary == binary
    assert binary.read_bytes() == before, "the original is not ours to sign"
    programs = tree.venv / "bin"
    place = interpreter.place
    assert place.parent == programs
    assert not place.is_symlink()
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    copied = place.read_bytes()
    assert copied.startswith(before)
    assert plistlib.loads(copied[len(before) :]) == {"com.apple.security.hypervisor": True}, "and no other"
    for name in ("python", "python3", "python3.12"):
        assert os.path.realpath(programs / name) == os.path.realpath(place), name
    assert sorted(path.name for path in programs.iterdir()) == ["python", "python3", "python3.12"]
    assert signing.is_signed(programs / "python")


def test_the_entitlement_stands_alone() -> None:
    text = (files("rift_hvf") / "entitlements.plist").read_bytes()
    assert plistlib.loads(text) == {"com.apple.security.hypervisor": True}


def test_python_of_python_org(tree: Tree) -> None:
    launcher, application = framework(tree, "Library/Frameworks")
    tree.link("usr/local/bin/python3.12", launcher)
    tree.make_venv(tree.folder / "usr/local/bin/python3.12")
    check_signed(tree, application)


def test_python_of_homebrew(tree: Tree) -> None:
    cellar = "opt/homebrew/Cellar/python@3.12/3.12.4"
    launcher, application = framework(tree, f"{cellar}/Frameworks")
    tree.link(f"{cellar}/bin/python3.12", os.path.relpath(launcher, tree.folder / cellar / "bin"))
    tree.link("opt/homebrew/opt/python@3.12", tree.folder / cellar)
    tree.make_venv(tree.folder / "opt/homebrew/opt/python@3.12/bin/python3.12", first="python")
    check_signed(tree, application)


def test_python_of_pyenv(tree: Tree) -> None:
    binary = tree.file("home/.pyenv/versions/3.12.4/bin/python3.12", macho())
    tree.make_venv(binary)
    check_signed(tree, binary)


def test_a_shim_of_pyenv_is_told_apart(tree: Tree) -> None:
    tree.make_venv(tree.file("home/.pyenv/shims/python3.12", b"#!/usr/bin/env bash\nexec pyenv exec python3.12\n"))
    with pytest.raises(SigningError, match="pyenv which python3"):
        signing.sign(tree.venv)


def test_python_of_uv_finds_its_library(tree: Tree) -> None:
    root = "home/.local/share/uv/python/cpython-3.12.4-macos-aarch64-none"
    binary = tree.file(f"{root}/bin/python3.12", macho(["@executable_path/../lib/libpython3.12.dylib", SYSTEM]))
    library = tree.file(f"{root}/lib/libpython3.12.dylib", b"library")
    tree.link("home/.local/share/uv/python/cpython-3.12", tree.folder / root)
    tree.make_venv(tree.folder / "home/.local/share/uv/python/cpython-3.12/bin/python3.12", first="python")
    check_signed(tree, binary)
    assert os.path.realpath(tree.venv / "lib" / "libpython3.12.dylib") == str(library)
    check_signed(tree, binary)  # once more: links and copy are there already


def test_python_of_conda_finds_all_of_its_libraries(tree: Tree) -> None:
    root = "opt/miniconda3"
    binary = tree.file(f"{root}/bin/python3.12", macho(["@rpath/libpython3.12.dylib"], ["@loader_path/../lib/"]))
    for name in ("libpython3.12.dylib", "libssl.3.dylib"):
        tree.file(f"{root}/lib/{name}", name.encode())
    tree.file(f"{root}/lib/notes.txt", b"")
    tree.make_venv(binary)
    check_signed(tree, binary)
    linked = {path.name: path.read_bytes() for path in (tree.venv / "lib").iterdir()}
    assert linked == {"libpython3.12.dylib": b"libpython3.12.dylib", "libssl.3.dylib": b"libssl.3.dylib"}


def test_a_universal_binary_is_copied_whole(tree: Tree) -> None:
    data = macho(["@executable_path/../lib/libpython3.12.dylib"], slices=2)
    binary = tree.file("opt/python/bin/python3.12", data)
    tree.file("opt/python/lib/libpython3.12.dylib", b"library")
    tree.make_venv(binary)
    check_signed(tree, binary)
    assert (tree.venv / "lib" / "libpython3.12.dylib").read_bytes() == b"library"


def test_signing_again_after_an_update(tree: Tree) -> None:
    """The venv's interpreter is a file by then: pyvenv.cfg says where it came from."""
    binary = tree.file("opt/python/bin/python3.12", macho())
    tree.make_venv(binary)
    check_signed(tree, binary)
    tree.file("opt/python/bin/python3.12", macho([SYSTEM, "/usr/lib/libz.dylib"]))
    check_signed(tree, binary)
    binary.unlink()
    with pytest.raises(SigningError, match="not there any more"):
        signing.sign(tree.venv)


def test_names_that_lead_out_by_themselves(tree: Tree) -> None:
    binary = tree.file("opt/python/bin/python3.12", macho())
    tree.make_venv(binary)
    (tree.venv / "bin" / "python3").unlink()
    (tree.venv / "bin" / "python3").symlink_to(binary)
    check_signed(tree, binary)


# -- what goes wrong leaves the venv as it was --------------------------------


def refused(tree: Tree, sentence: str) -> None:
    before = tree.everything()
    with pytest.raises(SigningError, match=sentence):
        signing.sign(tree.venv)
    assert tree.everything() == before


def plain(tree: Tree, data: bytes | None = None) -> Path:
    binary = tree.file("opt/python/bin/python3.12", macho() if data is None else data)
    tree.make_venv(binary)
    return binary


def test_no_venv(tree: Tree) -> None:
    tree.venv.mkdir(parents=True)
    refused(tree, "python3 -m venv")


def test_a_venv_without_python(tree: Tree) -> None:
    tree.venv.mkdir(parents=True)
    tree.configure(Path("/opt/bin/python3"), "3.12")
    refused(tree, "is missing")


def test_a_python_that_was_removed(tree: Tree) -> None:
    plain(tree).unlink()
    refused(tree, "is not there: make the venv again")


def test_links_in_a_circle(tree: Tree) -> None:
    plain(tree)
    (tree.venv / "bin" / "python3.12").unlink()
    (tree.venv / "bin" / "python3.12").symlink_to("python")
    refused(tree, "circle")


def test_a_framework_without_its_interpreter(tree: Tree) -> None:
    launcher, application = framework(tree, "Library/Frameworks")
    application.unlink()
    tree.make_venv(launcher)
    refused(tree, "install this Python again")


@pytest.mark.parametrize("data", [b"\x7fELF" + bytes(100), b"", macho()[:40], macho()[:36] + bytes(40)])
def test_no_executable_of_macos(tree: Tree, data: bytes) -> None:
    plain(tree, data)
    refused(tree, "no 64-bit executable of macOS")


def test_a_library_outside_of_the_venv(tree: Tree) -> None:
    root = "Applications/Xcode.app/Contents/Developer/Library/Frameworks/Python3.framework/Versions/3.12"
    application = tree.file(
        f"{root}/Resources/Python.app/Contents/MacOS/Python", macho(["@executable_path/../../../../Python3"])
    )
    tree.file(f"{root}/Python3", b"library")
    tree.make_venv(tree.file(f"{root}/bin/python3.12", macho()))
    assert interpreter_of(tree.venv).binary == application
    refused(tree, "outside of the venv")


def test_a_file_in_the_way_of_a_library(tree: Tree) -> None:
    plain(tree, macho(["@executable_path/../lib/libpython3.12.dylib"]))
    tree.file("opt/python/lib/libpython3.12.dylib", b"library")
    tree.file("project/.venv/lib/libpython3.12.dylib", b"another")
    refused(tree, "in the way")


def test_codesign_fails(tree: Tree) -> None:
    plain(tree)
    tree.codesign(sign='echo "no identity found" >&2; exit 1')
    refused(tree, "status 1: no identity found")


def test_codesign_does_nothing(tree: Tree) -> None:
    plain(tree)
    tree.codesign(sign="true")
    refused(tree, "does not have the entitlement")


def test_codesign_is_missing(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(tree)
    monkeypatch.setenv("PATH", str(tree.folder))
    refused(tree, "xcode-select --install")


def test_an_older_codesign_shows_entitlements_otherwise(tree: Tree) -> None:
    binary = plain(tree)
    tree.codesign(old="exit 64")
    check_signed(tree, binary)
    assert any("--entitlements :-" in call for call in tree.calls)


def test_a_copy_that_does_not_start(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(copy: Path, venv: Path) -> None:
        raise SigningError("the signed copy does not start (status -9): it said nothing")

    plain(tree)
    monkeypatch.setattr(signing, "_try", ended)
    refused(tree, "status -9")


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo {venv}", ""),
        ("echo /somewhere", "takes /somewhere for its venv"),
        ("echo 'Library not loaded: @rpath/x' >&2; exit 134", "status 134.: Library not loaded"),
        ("kill -9 $$", "status -9.: it said nothing"),
    ],
)
def test_the_trial_of_a_copy(tmp_path: Path, script: str, sentence: str) -> None:
    require_tool("sh")
    copy = tmp_path / "copy"
    copy.write_text("#!/bin/sh\n" + script.format(venv=tmp_path) + "\n")
    copy.chmod(0o755)
    if not sentence:
        signing._try(copy, tmp_path)
        return
    with pytest.raises(SigningError, match=sentence):
        signing._try(copy, tmp_path)


def test_the_trial_takes_this_python() -> None:
    signing._try(Path(sys.executable), Path(sys.prefix))


# -- the command ---------------------------------


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(group, ["macos-sign", *arguments])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_the_command_signs_and_says_so(tree: Tree) -> None:
    binary = plain(tree)
    status, text = invoke("--venv", str(tree.venv))
    assert (status, text.strip()) == (
        0,
        f"{tree.venv / 'bin' / 'python3.12'} is a copy of {binary}, signed with com.apple.security.hypervisor",
    )
    before = tree.everything()
    assert invoke("--venv", str(tree.venv), "--if-needed") == (0, "")
    assert tree.everything() == before


def test_the_venv_in_use_is_the_default(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(tree)
    monkeypatch.setattr(sys, "prefix", str(tree.venv))
    assert invoke()[0] == 0
    monkeypatch.setattr(sys, "base_prefix", str(tree.venv))
    status, text = invoke()
    assert status == 1
    assert "python3 -m venv .venv" in text


@pytest.mark.skipif(sys.platform == "darwin", reason="it is macOS")
def test_elsewhere_it_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rift_core.cli", "macos-sign"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "rift: signing is a matter of macOS: nothing to do here"


def test_references_of_damaged_files() -> None:
    whole = macho(["@rpath/a.dylib"], ["@loader_path/../lib"], slices=2)
    found = references(whole)
    assert found is not None
    assert (found.libraries, found.folders) == (("@rpath/a.dylib",), ("@loader_path/../lib",))
    for size in range(0, 0x1000, 97):
        assert references(whole[:size]) is None
    for size in range(0x1000, len(whole), 97):
        assert references(whole[:size]) in (None, found)
    assert references(whole[:4] + b"\xff" * 4 + whole[8:]) == found, "however many slices it says it has"
