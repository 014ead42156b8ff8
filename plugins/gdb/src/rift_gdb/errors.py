"""What a packet is refused with."""

from __future__ import annotations


class PacketError(Exception):
    """The answer is an error: ``Enn``, or with the text for clients that show it."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


NOT_MAPPED = 0x0E  # EFAULT
INVALID = 0x16  # EINVAL
FULL = 0x1C  # ENOSPC
NOT_THERE = 0x03  # ESRCH
