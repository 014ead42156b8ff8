"""Names of bits in registers, for debuggers.

SDM volume 3, "System Architecture Overview" and "Debug Registers"; volume 1, "EFLAGS Register" and "MXCSR Control and
Status Register"; APM volume 2, "Extended Feature Enable Register".
"""

from __future__ import annotations

from rift_core.isa_debug import BitField


def _bits(**places: int | tuple[int, int]) -> tuple[BitField, ...]:
    """``NAME=bit``, or ``NAME=(first, last)``; underscores at the end of a name are dropped."""
    return tuple(
        BitField(name.rstrip("_"), *((place, place) if isinstance(place, int) else place))
        for name, place in places.items()
    )


RFLAGS = _bits(
    CF=0, PF=2, AF=4, ZF=6, SF=7, TF=8, IF=9, DF=10, OF=11, IOPL=(12, 13), NT=14, RF=16, VM=17, AC=18, VIF=19, VIP=20,
    ID=21,
)  # fmt: skip
CR0 = _bits(PE=0, MP=1, EM=2, TS=3, ET=4, NE=5, WP=16, AM=18, NW=29, CD=30, PG=31)
CR4 = _bits(
    VME=0, PVI=1, TSD=2, DE=3, PSE=4, PAE=5, MCE=6, PGE=7, PCE=8, OSFXSR=9, OSXMMEXCPT=10, UMIP=11, LA57=12, VMXE=13,
    SMXE=14, FSGSBASE=16, PCIDE=17, OSXSAVE=18, KL=19, SMEP=20, SMAP=21, PKE=22, CET=23, PKS=24, UINTR=25,
)  # fmt: skip
EFER = _bits(SCE=0, LME=8, LMA=10, NXE=11, SVME=12, LMSLE=13, FFXSR=14, TCE=15)
XCR0 = _bits(X87=0, SSE=1, AVX=2, BNDREG=3, BNDCSR=4, OPMASK=5, ZMM_HI256=6, HI16_ZMM=7, PKRU=9)
MXCSR = _bits(
    IE=0, DE=1, ZE=2, OE=3, UE=4, PE=5, DAZ=6, IM=7, DM=8, ZM=9, OM=10, UM=11, PM=12, RC=(13, 14), FZ=15
)  # fmt: skip
DR6 = _bits(B0=0, B1=1, B2=2, B3=3, BD=13, BS=14, BT=15)
DR7 = _bits(
    L0=0, G0=1, L1=2, G1=3, L2=4, G2=5, L3=6, G3=7, LE=8, GE=9, GD=13, RW0=(16, 17), LEN0=(18, 19), RW1=(20, 21),
    LEN1=(22, 23), RW2=(24, 25), LEN2=(26, 27), RW3=(28, 29), LEN3=(30, 31),
)  # fmt: skip
