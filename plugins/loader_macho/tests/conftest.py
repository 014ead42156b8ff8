"""Makes ``macho_writer`` importable: with --import-mode=importlib the folder of a test is not on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
