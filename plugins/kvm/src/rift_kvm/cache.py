"""What the experiments found, kept until the next boot.

In the process in a dictionary; on disk in the user's cache folder (XDG Base Directory Specification), keyed
by everything that could change the answer. The file is only a shortcut: one that is missing, damaged or not
writable costs a few milliseconds, and what it says is checked before it is believed.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from rift_kvm.measure import Measured

_VERSION = 6
"""Raised when the experiments change."""

_MOST_BYTES = 64 * 1024


def key(device: str) -> str:
    """Names this boot, kernel, KVM modules and device."""
    parts = [str(_VERSION), os.uname().release, os.uname().version, _read("/proc/sys/kernel/random/boot_id")]
    for module in ("kvm_pvm", "kvm_amd", "kvm_intel"):
        if os.path.isdir(f"/sys/module/{module}"):
            parts += [module, _read(f"/sys/module/{module}/srcversion")]
    with contextlib.suppress(OSError):
        parts.append(str(os.stat(device).st_rdev))
    return " ".join(parts)


def load(wanted: str) -> Measured | None:
    """What was found under this key."""
    try:
        with open(_path(), "rb") as file:
            data: Any = json.loads(file.read(_MOST_BYTES))
        if data["key"] != wanted:
            return None
        names, capabilities, pages, xcr0 = data["names"], data["capabilities"], data["page_sizes"], data["xcr0"]
        identity = data["id_registers"]
        texts = all(isinstance(text, str) for text in [*names, *capabilities])
        numbers = all(type(number) is int and number >= 0 for number in [*pages, xcr0, *identity.values()])
        if not (texts and numbers and isinstance(names, list) and isinstance(capabilities, list)):
            return None
        return Measured(frozenset(names), frozenset(capabilities), tuple(pages), xcr0, identity)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def store(wanted: str, measured: Measured) -> None:
    """Remember what was found; silently not, where the folder cannot be written."""
    data = {
        "key": wanted,
        "names": sorted(measured.names),
        "capabilities": sorted(measured.capabilities),
        "page_sizes": list(measured.page_sizes),
        "xcr0": measured.xcr0,
        "id_registers": dict(measured.id_registers),
    }
    import tempfile  # seldom needed, and slow to import

    path = _path()
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(data, file)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def _path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache"
    return folder / "rift" / "kvm.json"


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(256).strip()
    except OSError:
        return ""
