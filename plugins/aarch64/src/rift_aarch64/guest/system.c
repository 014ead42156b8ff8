/* Registers that only supervisor mode can read, for programs that show them. */
#include "rift_internal.h"

RIFT_RUNTIME(system_value) bool rift_system_value(unsigned index, struct rift_system_value *value) {
    switch (index) {
    case 0:
        *value = (struct rift_system_value){"CurrentEL", "exception level in bits 3:2", rift_read_currentel()};
        return true;
    case 1:
        *value = (struct rift_system_value){"SCTLR_EL1", "MMU, caches, alignment checks", rift_read_sctlr_el1()};
        return true;
    case 2:
        *value = (struct rift_system_value){"TTBR0_EL1", "page tables of this guest", rift_read_ttbr0_el1()};
        return true;
    case 3:
        *value = (struct rift_system_value){"TCR_EL1", "what they are like", rift_read_tcr_el1()};
        return true;
    default:
        return false;
    }
}
