"""``[debug]``, or ``[[extensions]] name = "gdb"``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from rift_core.plugin import Section
from rift_gdb.address import DEFAULT_PORT, parse_address


class GdbConfig(Section):
    """Settings of the debugger's server."""

    listen: str = Field(
        default=f"127.0.0.1:{DEFAULT_PORT}",
        description='Where debuggers connect: "9999", ":9999", "host:9999" (port 0: any free one), or "unix:PATH".',
    )
    wait: bool = Field(
        default=False,
        description="Guest threads do not begin before a debugger has come and lets them.",
    )
    on_disconnect: Literal["continue", "stop", "kill"] = Field(
        default="continue",
        description="What becomes of the guest when the connection breaks: it goes on without breakpoints, stays "
        "stopped until the next debugger comes, or ends.",
    )
    hold_faults: bool = Field(
        default=False,
        description="A guest's fault waits for a debugger to come, instead of ending the thread.",
    )
    allow_remote: bool = Field(
        default=False,
        description="Listen on other addresses than this machine's own, although whoever connects can do anything with "
        "the guest: the protocol has no authentication.",
    )

    @field_validator("listen", mode="before")
    @classmethod
    def _check(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str):
            parse_address(value)
        return value
