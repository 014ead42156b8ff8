"""Names of bits in registers, for debuggers: Arm ARM, chapters C5 (PSTATE as in SPSR_EL1, FPCR, FPSR) and D19."""

from __future__ import annotations

from rift_core.isa_debug import BitField


def _bits(**places: int | tuple[int, int]) -> tuple[BitField, ...]:
    """``NAME=bit``, or ``NAME=(first, last)``."""
    return tuple(
        BitField(name, *((place, place) if isinstance(place, int) else place)) for name, place in places.items()
    )


PSTATE = _bits(
    SP=0, EL=(2, 3), nRW=4, F=6, I=7, A=8, D=9, BTYPE=(10, 11), SSBS=12, IL=20, SS=21, PAN=22, UAO=23, DIT=24, TCO=25,
    V=28, C=29, Z=30, N=31,
)  # fmt: skip
FPSR = _bits(IOC=0, DZC=1, OFC=2, UFC=3, IXC=4, IDC=7, QC=27)
FPCR = _bits(IOE=8, DZE=9, OFE=10, UFE=11, IXE=12, IDE=15, FZ16=19, RMode=(22, 23), FZ=24, DN=25, AHP=26)
SCTLR = _bits(
    M=0, A=1, C=2, SA=3, SA0=4, CP15BEN=5, nAA=6, ITD=7, SED=8, UMA=9, EnRCTX=10, EOS=11, I=12, EnDB=13, DZE=14, UCT=15,
    nTWI=16, nTWE=18, WXN=19, TSCXT=20, IESB=21, EIS=22, SPAN=23, E0E=24, EE=25, UCI=26, EnDA=27, nTLSMD=28, LSMAOE=29,
    EnIB=30, EnIA=31,
)  # fmt: skip
TCR = _bits(
    T0SZ=(0, 5), EPD0=7, IRGN0=(8, 9), ORGN0=(10, 11), SH0=(12, 13), TG0=(14, 15), T1SZ=(16, 21), A1=22, EPD1=23,
    IRGN1=(24, 25), ORGN1=(26, 27), SH1=(28, 29), TG1=(30, 31), IPS=(32, 34), AS=36, TBI0=37, TBI1=38, HA=39, HD=40,
)  # fmt: skip
ESR = _bits(ISS=(0, 24), IL=25, EC=(26, 31))
CPACR = _bits(ZEN=(16, 17), FPEN=(20, 21), SMEN=(24, 25), TTA=28)
