"""The payload file: as it stands, or built first where ``[binary] path`` names a source.

What is built lies in a temporary folder of its own, as long as its machine is open: debuggers read symbols and lines
from the file. (The machine's memory would not need it: the pages of a mapped file outlive its name.)
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from rift_core.build import build
from rift_core.build_target import BuildError
from rift_core.files import is_source

if TYPE_CHECKING:
    from rift_core.config import MachineConfig

LOGGER = logging.getLogger("rift.build")
"""Gets the compiler's warnings; they reach standard error unless the program has set logging up otherwise."""


class BuiltPayload:
    """A payload in a temporary folder, which goes with :meth:`remove`, with this object, or with the process.

    :param source: what it was built from.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        try:
            folder = Path(tempfile.mkdtemp(prefix="rift-"))
        except OSError as error:
            raise BuildError(f"{source} cannot be built: no temporary folder: {error}") from error
        self.path = folder / source.stem
        self._remove = weakref.finalize(self, _remove, folder, os.getpid())

    def remove(self) -> None:
        """Delete the file and its folder. Twice is harmless."""
        self._remove()


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child has a copy of this finalizer, but the folder is its parent's
        shutil.rmtree(folder, ignore_errors=True)


def build_payload(config: MachineConfig, isa: str) -> BuiltPayload | None:
    """Build the payload of a configuration for ``isa``; None where ``binary.path`` is no source.

    :raises BuildError: it does not compile, or there is no compiler.
    :raises PluginNotFoundError: no installed plugin brings a guest runtime for ``isa``.
    """
    section = config.binary
    if section.path is None or not is_source(section.path):
        return None
    sources = [config.directory / source for source in (section.path, *section.sources)]
    built = BuiltPayload(sources[0])
    try:
        result = build(
            sources,
            built.path,
            isa,
            section.compiler,
            simd=section.simd,
            pie=section.pie,
            runtime=section.runtime,
            format=section.format,
            entry=None,  # [[threads]] say where they start
            doorbell=config.memory.doorbell,
            options=section.build_options,
            directory=config.directory,
        )
    except BaseException:
        built.remove()
        raise
    if result.warnings:
        LOGGER.warning(result.warnings.rstrip())
    return built
