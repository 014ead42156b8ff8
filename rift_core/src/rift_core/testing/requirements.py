"""``@requires``: which conformance tests need more than every backend has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rift_core.testing.tools import Need


def requires(*needs: Need) -> pytest.MarkDecorator:
    """Skip the test, with a reason, where the backend lacks a capability or cannot cause an exit."""
    return pytest.mark.rift_requires(*needs)
