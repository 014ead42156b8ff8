"""``elf_writer`` importable (--import-mode=importlib has no test's folder on the path), and what loads its files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rift_loader_elf import ElfConfig, rift_load_binary

if TYPE_CHECKING:
    from collections.abc import Callable

    import elf_writer as w

    from rift_core.binary import Binary

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Binary]:
    """Writes a file and loads it."""

    def call(elf: w.Elf | bytes, **config: object) -> Binary:
        path = tmp_path / "file"
        path.write_bytes(elf if isinstance(elf, bytes) else elf.build())
        binary = rift_load_binary(path, ElfConfig.model_validate(config))
        assert binary is not None
        return binary

    return call
