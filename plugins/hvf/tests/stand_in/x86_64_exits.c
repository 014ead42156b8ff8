/* KVM's exits as a VMX CPU shows them: before the instruction, with nothing done yet.
 *
 * KVM has executed an instruction that exits, wholly or in part. A read is taken back: the access is completed with
 * zeros by an entry that ends at once, which also tells the instruction's length, and the registers from before are
 * kept. A store or an OUT that KVM's emulator has finished leaves RIP behind it: the instruction is looked for
 * in front of RIP, by its effect. */
#include "x86_64.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

enum { REASON_EXC = 0, REASON_TRIPLE = 2, REASON_WINDOW = 7, REASON_HLT = 12, REASON_IO = 30, REASON_RDMSR = 31,
       REASON_WRMSR = 32, REASON_MTF = 37, REASON_EPT = 48 };

void exit_set(struct vcpu *vcpu, uint32_t reason, uint64_t qualification, uint32_t length) {
    vcpu->vmcs[F_RO_REASON] = reason;
    vcpu->vmcs[F_RO_QUALIFICATION] = qualification;
    vcpu->vmcs[F_RO_LENGTH] = length;
    vcpu->vmcs[F_RO_IRQ_INFO] = vcpu->vmcs[F_RO_IDT_INFO] = 0;
}

struct region *region_at(uint64_t gpa) {
    for (unsigned at = 0; at < machine->region_count; ++at)
        if (gpa - machine->regions[at].gpa < machine->regions[at].bytes)
            return &machine->regions[at];
    return 0;
}

/* Guest bytes at a linear address, by KVM's own walk. Returns how many. */
static unsigned guest_bytes(struct vcpu *vcpu, uint64_t linear, uint8_t *buffer, unsigned count) {
    for (unsigned at = 0; at < count; ++at) {
        struct kvm_translation translation = {.linear_address = linear + at};
        if (ioctl(vcpu->fd, KVM_TRANSLATE, &translation) || !translation.valid)
            return at;
        const struct region *region = region_at(translation.physical_address);
        if (!region)
            return at;
        buffer[at] = region->host[translation.physical_address - region->gpa];
    }
    return count;
}

/* Lets KVM finish the access, without entering the guest. Further parts of it are finished as well. */
static int finish(struct vcpu *vcpu) {
    for (int part = 0; part < 4096; ++part) {
        vcpu->run->immediate_exit = 1;
        int status = ioctl(vcpu->fd, KVM_RUN, 0);
        vcpu->run->immediate_exit = 0;
        if (status < 0)
            return errno == EINTR ? 0 : -1;
    }
    return -1;
}

/* After an exit whose instruction KVM has not finished: its length. The registers are then those from before. */
static int take_back(struct vcpu *vcpu, uint32_t *length) {
    struct kvm_regs before, after;
    struct kvm_sregs system;
    if (ioctl(vcpu->fd, KVM_GET_REGS, &before) || ioctl(vcpu->fd, KVM_GET_SREGS, &system) || finish(vcpu) ||
        ioctl(vcpu->fd, KVM_GET_REGS, &after))
        return -1;
    *length = (uint32_t)(after.rip - before.rip) & 15;
    if (memcmp(&before, &after, sizeof(before)) != 0 && ioctl(vcpu->fd, KVM_SET_REGS, &before))
        return -1;
    return state_load_general(vcpu);
}

/* -- stores: which instruction has done this ------------------------------------------------------------------ */

static uint64_t general(const struct vcpu *vcpu, unsigned number) {
    static const uint8_t low[8] = {R_RAX, R_RCX, R_RDX, R_RBX, R_RSP, R_RBP, R_RSI, R_RDI};
    return vcpu->registers[number < 8 ? low[number] : R_R8 + number - 8];
}

static uint64_t cut(uint64_t value, unsigned size) {
    return size >= 8 ? value : value & ((UINT64_C(1) << 8 * size) - 1);
}

/* Whether `code` is exactly one store of `size` bytes of `value`: MOV to memory, in the forms that compilers make. */
static int is_store(const struct vcpu *vcpu, const uint8_t *code, unsigned count, unsigned size, uint64_t value) {
    unsigned at = 0, operand16 = 0, rex = 0;
    if (code[at] == 0x66)
        operand16 = 1, ++at;
    if ((code[at] & 0xF0) == 0x40)
        rex = code[at++];
    if (at + 2 > count)
        return 0;
    const uint8_t opcode = code[at++];
    const unsigned word = rex & 8 ? 8 : operand16 ? 2 : 4;
    if (opcode == 0xA2 || opcode == 0xA3)
        return count == at + 8 && size == (opcode & 1 ? word : 1) && cut(vcpu->registers[R_RAX], size) == value;
    if (opcode != 0x88 && opcode != 0x89 && opcode != 0xC6 && opcode != 0xC7)
        return 0;
    if (size != (opcode & 1 ? word : 1))
        return 0;
    const uint8_t modrm = code[at++];
    const unsigned mode = modrm >> 6, rm = modrm & 7;
    unsigned displacement = mode == 1 ? 1 : mode == 2 || (mode == 0 && rm == 5) ? 4 : 0;
    if (mode == 3)
        return 0;
    if (rm == 4) {
        if (at >= count)
            return 0;
        if (mode == 0 && (code[at] & 7) == 5)
            displacement = 4;
        ++at;
    }
    at += displacement;
    if (opcode >= 0xC6) {
        const unsigned bytes = opcode & 1 ? (word > 4 ? 4 : word) : 1;
        int64_t immediate = 0;
        if (count != at + bytes || (modrm & 0x38))
            return 0;
        memcpy(&immediate, code + at, bytes);
        immediate = immediate << (64 - 8 * bytes) >> (64 - 8 * bytes);
        return cut((uint64_t)immediate, size) == value;
    }
    unsigned reg = (modrm >> 3 & 7) | (rex & 4) << 1;
    uint64_t held = general(vcpu, reg);
    if (opcode == 0x88 && !rex && reg >= 4)
        held = general(vcpu, reg - 4) >> 8;
    return count == at && cut(held, size) == value;
}

/* The bytes of a string instruction with these opcodes (the even one and the next), and nothing behind. */
static int is_string(const uint8_t *code, unsigned count, uint8_t opcode, unsigned size) {
    unsigned at = 0, word = 4;
    while (at < count && (code[at] == 0xF3 || code[at] == 0x66 || code[at] == 0x48)) {
        word = code[at] == 0x66 ? 2 : code[at] == 0x48 ? 8 : word;
        ++at;
    }
    return at + 1 == count && (code[at] & 0xFE) == opcode && size == (code[at] & 1 ? word : 1);
}

static int has_rep(const uint8_t *code, unsigned count) {
    for (unsigned at = 0; at < count; ++at)
        if (code[at] == 0xF3)
            return 1;
    return 0;
}

/* Puts the registers back in front of the STOS or MOVS that has stored at `gpa`: KVM's emulator has moved RDI, RSI and
 * RCX, and RIP if there is no REP. Returns 1 if there is one. */
static int step_back_over_string_store(struct vcpu *vcpu, unsigned size, uint64_t gpa) {
    uint64_t *r = vcpu->registers;
    const uint64_t one = r[R_RFLAGS] & 1 << 10 ? -(uint64_t)size : size;
    struct kvm_translation translation = {.linear_address = r[R_RDI] - one};
    if (ioctl(vcpu->fd, KVM_TRANSLATE, &translation) || !translation.valid || translation.physical_address != gpa)
        return 0;
    for (unsigned behind = 0; behind < 2; ++behind)
        for (unsigned count = 1; count <= 4; ++count) {
            const uint64_t start = r[R_RIP] - (behind ? count : 0);
            uint8_t code[4];
            if (guest_bytes(vcpu, start, code, count) != count || has_rep(code, count) == (int)behind)
                continue;
            const int move = is_string(code, count, 0xA4, size);
            if (!move && !is_string(code, count, 0xAA, size))
                continue;
            r[R_RIP] = start;
            r[R_RDI] -= one;
            r[R_RSI] -= move ? one : 0;
            r[R_RCX] += !behind;
            vcpu->general_changed = 1;
            return 1;
        }
    return 0;
}

/* Puts RIP back in front of the store that ends at it. */
static int step_back_over_store(struct vcpu *vcpu, unsigned size, uint64_t gpa, uint64_t value) {
    const uint64_t end = vcpu->registers[R_RIP];
    uint8_t code[15];
    if (step_back_over_string_store(vcpu, size, gpa))
        return 0;
    for (unsigned count = 2; count <= 15; ++count)
        if (guest_bytes(vcpu, end - count, code, count) == count && is_store(vcpu, code, count, size, value)) {
            vcpu->registers[R_RIP] = end - count;
            vcpu->general_changed = 1;
            return 0;
        }
    fprintf(stderr, "stand-in: no store of %u bytes ends at %#lx\n", size, (unsigned long)end);
    return -1;
}

/* -- the exits ----------------------------------------------------------------------------------------------- */

/* Finishes a store, which comes in two parts where it goes over two pages. Returns its size. */
static unsigned finish_store(struct vcpu *vcpu, uint64_t *value) {
    struct kvm_run *run = vcpu->run;
    uint8_t bytes[16] = {0};
    unsigned size = 0;
    for (int status = 0; status == 0 && size + run->mmio.len <= sizeof(bytes);) {
        memcpy(bytes + size, run->mmio.data, run->mmio.len);
        size += run->mmio.len;
        run->immediate_exit = 1;
        status = ioctl(vcpu->fd, KVM_RUN, 0);
        run->immediate_exit = 0;
    }
    memcpy(value, bytes, sizeof(*value));
    return size;
}

static int translate_mmio(struct vcpu *vcpu) {
    struct kvm_run *run = vcpu->run;
    const uint64_t gpa = run->mmio.phys_addr;
    const int write = run->mmio.is_write;
    const struct region *region = region_at(gpa);
    uint64_t value;
    uint32_t length;
    if (write) {
        const unsigned size = finish_store(vcpu, &value);
        if (state_load_general(vcpu) || step_back_over_store(vcpu, size, gpa, value))
            return HV_ERROR;
    }
    memset(run->mmio.data, 0, sizeof(run->mmio.data));
    if (!write && take_back(vcpu, &length))
        return HV_ERROR;
    vcpu->vmcs[F_GPA] = gpa;
    exit_set(vcpu, REASON_EPT, (write ? 2 : 1) | (region ? (region->flags & 7) << 3 : 0), 0);
    return HV_SUCCESS;
}

/* OUT in one of its forms, with these bytes. */
static int is_out(const struct vcpu *vcpu, const uint8_t *code, unsigned count, unsigned size, unsigned port) {
    unsigned at = 0, operand16 = 0;
    if (code[0] == 0x66)
        operand16 = 1, ++at;
    const uint8_t opcode = code[at++];
    const unsigned word = operand16 ? 2 : 4;
    if (opcode == 0xEE || opcode == 0xEF)
        return count == at && size == (opcode & 1 ? word : 1) && (vcpu->registers[R_RDX] & 0xFFFF) == port;
    if (opcode == 0xE6 || opcode == 0xE7)
        return count == at + 1 && size == (opcode & 1 ? word : 1) && code[at] == port;
    return 0;
}

/* Puts the registers back in front of the OUT that ends at RIP. Returns its length, 0 if there is none. */
static uint32_t step_back_over_out(struct vcpu *vcpu, unsigned size, unsigned port, uint64_t value) {
    uint8_t code[3];
    if (cut(vcpu->registers[R_RAX], size) != value)
        return 0;
    for (unsigned count = 1; count <= 3; ++count)
        if (guest_bytes(vcpu, vcpu->registers[R_RIP] - count, code, count) == count &&
            is_out(vcpu, code, count, size, port)) {
            vcpu->registers[R_RIP] -= count;
            return count;
        }
    return 0;
}

/* The same for OUTS: the emulator has moved RSI and RCX, and RIP if there is no REP. */
static uint32_t step_back_over_outs(struct vcpu *vcpu, unsigned size, uint64_t *qualification) {
    uint64_t *r = vcpu->registers;
    uint8_t code[4];
    for (unsigned behind = 0; behind < 2; ++behind)
        for (unsigned count = 1; count <= 4; ++count) {
            const uint64_t start = r[R_RIP] - (behind ? count : 0);
            if (guest_bytes(vcpu, start, code, count) != count || !is_string(code, count, 0x6E, size))
                continue;
            const int rep = has_rep(code, count);
            if (!behind && !rep) /* a REP stays at its instruction even when RCX has come to 0 */
                continue;
            r[R_RIP] = start;
            r[R_RSI] += r[R_RFLAGS] & 1 << 10 ? size : -(uint64_t)size;
            if (rep)
                r[R_RCX] += 1;
            *qualification |= 1 << 4 | (rep ? 1 << 5 : 0);
            return count;
        }
    return 0;
}

/* KVM's emulator has finished an OUT when it exits, others have not: then finishing it moves RIP. */
static int translate_out(struct vcpu *vcpu, unsigned size, unsigned port, uint64_t qualification) {
    struct kvm_run *run = vcpu->run;
    uint64_t value = 0;
    memcpy(&value, (uint8_t *)run + run->io.data_offset, size);
    if (state_load_general(vcpu))
        return HV_ERROR;
    uint32_t length = step_back_over_out(vcpu, size, port, value);
    if (!length)
        length = step_back_over_outs(vcpu, size, &qualification);
    if (length) {
        vcpu->general_changed = 1;
        if (finish(vcpu))
            return HV_ERROR;
    } else if (take_back(vcpu, &length) || !length) {
        fprintf(stderr, "stand-in: no OUT at %#lx, RCX %#lx, RSI %#lx, size %u\n", (unsigned long)vcpu->registers[R_RIP], (unsigned long)vcpu->registers[R_RCX], (unsigned long)vcpu->registers[R_RSI], size);
        return HV_ERROR;
    }
    exit_set(vcpu, REASON_IO, qualification, length);
    return HV_SUCCESS;
}

/* The length of the INS at RIP, 0 if it is an IN. */
static uint32_t ins_at(struct vcpu *vcpu, unsigned size, int *rep) {
    uint8_t code[4];
    for (unsigned count = 1; count <= 4; ++count)
        if (guest_bytes(vcpu, vcpu->registers[R_RIP], code, count) == count && is_string(code, count, 0x6C, size)) {
            *rep = has_rep(code, count);
            return count;
        }
    return 0;
}

/* Takes back an INS, of which KVM does as many elements at once as it likes: memory as well. */
static int take_back_ins(struct vcpu *vcpu, unsigned bytes) {
    uint8_t before[4096];
    uint64_t places[4096];
    unsigned count = 0;
    uint32_t ignored;
    const uint64_t first = vcpu->registers[R_RDI] - (vcpu->registers[R_RFLAGS] & 1 << 10 ? bytes : 0);
    for (unsigned at = 0; at < 2 * bytes && count < sizeof(before); ++at) {
        struct kvm_translation translation = {.linear_address = first + at};
        if (ioctl(vcpu->fd, KVM_TRANSLATE, &translation) || !translation.valid || !region_at(translation.physical_address))
            continue;
        const struct region *region = region_at(translation.physical_address);
        places[count] = translation.physical_address;
        before[count++] = region->host[translation.physical_address - region->gpa];
    }
    if (take_back(vcpu, &ignored))
        return -1;
    for (unsigned at = 0; at < count; ++at) {
        const struct region *region = region_at(places[at]);
        if (region->flags & 2)
            region->host[places[at] - region->gpa] = before[at];
    }
    return 0;
}

static int translate_io(struct vcpu *vcpu) {
    struct kvm_run *run = vcpu->run;
    const unsigned size = run->io.size, port = run->io.port;
    const uint64_t qualification = (size - 1) | (uint64_t)port << 16;
    uint32_t length;
    int rep = 0;
    if (run->io.direction != KVM_EXIT_IO_IN)
        return translate_out(vcpu, size, port, qualification);
    memset((uint8_t *)run + run->io.data_offset, 0, (size_t)size * run->io.count);
    if (state_load_general(vcpu))
        return HV_ERROR;
    const uint32_t string = ins_at(vcpu, size, &rep);
    if (string ? take_back_ins(vcpu, size * run->io.count) : take_back(vcpu, &length))
        return HV_ERROR;
    exit_set(vcpu, REASON_IO, qualification | 8 | (string ? 1 << 4 : 0) | (rep ? 1 << 5 : 0), string ? string : length);
    return HV_SUCCESS;
}

static int translate_msr(struct vcpu *vcpu, uint32_t reason) {
    uint32_t length;
    vcpu->run->msr.error = 0;
    vcpu->run->msr.data = 0;
    if (take_back(vcpu, &length))
        return HV_ERROR;
    if (!length) {
        vcpu->registers[R_RIP] -= 2;
        vcpu->general_changed = 1;
    }
    exit_set(vcpu, reason, 0, 2);
    return HV_SUCCESS;
}

static int translate_debug(struct vcpu *vcpu) {
    const struct kvm_debug_exit_arch *debug = &vcpu->run->debug.arch;
    if (state_load_general(vcpu))
        return HV_ERROR;
    if (debug->exception == 3) {
        exit_set(vcpu, REASON_EXC, 0, 1);
        vcpu->vmcs[F_RO_IRQ_INFO] = UINT64_C(1) << 31 | 6 << 8 | 3;
    } else if ((vcpu->vmcs[F_CPU] >> 27 & 1) && (debug->dr6 & 1 << 14 || !(debug->dr6 & 15))) {
        exit_set(vcpu, REASON_MTF, 0, 0);
    } else {
        exit_set(vcpu, REASON_EXC, debug->dr6 & 0xE00F, 0);
        vcpu->vmcs[F_RO_IRQ_INFO] = UINT64_C(1) << 31 | 3 << 8 | 1;
    }
    return HV_SUCCESS;
}

/* KVM cannot go on. A fetch from where there is no memory is an exit of its own; anything else is a gap of KVM. */
static int translate_failure(struct vcpu *vcpu) {
    if (state_load_general(vcpu))
        return HV_ERROR;
    struct kvm_translation translation = {.linear_address = vcpu->registers[R_RIP]};
    if (ioctl(vcpu->fd, KVM_TRANSLATE, &translation) == 0 && translation.valid &&
        !region_at(translation.physical_address)) {
        vcpu->vmcs[F_GPA] = translation.physical_address;
        exit_set(vcpu, REASON_EPT, 4, 0);
        return HV_SUCCESS;
    }
    return HV_ERROR;
}

int exit_translate(struct vcpu *vcpu) {
    const struct kvm_run *run = vcpu->run;
    vcpu->system_valid = 0;
    switch (run->exit_reason) {
    case KVM_EXIT_HLT:
        if (state_load_general(vcpu))
            return HV_ERROR;
        vcpu->registers[R_RIP] -= 1;
        vcpu->general_changed = 1;
        exit_set(vcpu, REASON_HLT, 0, 1);
        return HV_SUCCESS;
    case KVM_EXIT_IO:
        return translate_io(vcpu);
    case KVM_EXIT_MMIO:
        return translate_mmio(vcpu);
    case KVM_EXIT_X86_RDMSR:
        return translate_msr(vcpu, REASON_RDMSR);
    case KVM_EXIT_X86_WRMSR:
        return translate_msr(vcpu, REASON_WRMSR);
    case KVM_EXIT_DEBUG:
        return translate_debug(vcpu);
    case KVM_EXIT_IRQ_WINDOW_OPEN:
        exit_set(vcpu, REASON_WINDOW, 0, 0);
        return state_load_general(vcpu) ? HV_ERROR : HV_SUCCESS;
    case KVM_EXIT_SHUTDOWN:
        exit_set(vcpu, REASON_TRIPLE, 0, 0);
        return state_load_general(vcpu) ? HV_ERROR : HV_SUCCESS;
    case KVM_EXIT_FAIL_ENTRY:
        exit_set(vcpu, 0x80000021, 0, 0);
        return state_load_general(vcpu) ? HV_ERROR : HV_SUCCESS;
    default:
        return translate_failure(vcpu);
    }
}
