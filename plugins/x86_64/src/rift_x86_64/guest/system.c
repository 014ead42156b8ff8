/* Registers that only supervisor mode can read, for programs that show them. */
#include "rift_internal.h"

RIFT_RUNTIME(system_value) bool rift_system_value(unsigned index, struct rift_system_value *value) {
    switch (index) {
    case 0:
        *value = (struct rift_system_value){"CS", "code segment, privilege level in its two low bits", rift_read_cs()};
        return true;
    case 1:
        *value = (struct rift_system_value){"CR0", "protection, paging", rift_read_cr0()};
        return true;
    case 2:
        *value = (struct rift_system_value){"CR3", "page tables of this guest", rift_read_cr3()};
        return true;
    case 3:
        *value = (struct rift_system_value){"CR4", "enabled extensions", rift_read_cr4()};
        return true;
    default:
        return false;
    }
}
