/* Keeps the engine's translated code true.
 *
 * An engine notices when its own guest writes over code that it has translated. It does not notice other vCPUs
 * and the host, who share the memory. So the bytes of what was translated are kept, and compared before an entry
 * that somebody else may have written before. */
#include "emulator_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The place in `index` for a page: what it holds is 0, or the page's number in `pages` plus 1. */
static uint16_t *slot(struct rift_emulator_code *code, uint64_t gpa) {
    uint64_t at = (gpa / PAGE * UINT64_C(0x9E3779B97F4A7C15)) >> 32;
    for (;; ++at) {
        uint16_t *number = &code->index[at % RIFT_EMULATOR_CODE_SLOTS];
        if (!*number || code->pages[*number - 1].gpa == gpa)
            return number;
    }
}

static void forget_all(struct rift_emulator_code *code) {
    for (uint32_t at = 0; at < code->count; ++at)
        free(code->pages[at].copy);
    memset(code->index, 0, RIFT_EMULATOR_CODE_SLOTS * sizeof(*code->index));
    code->count = 0;
    code->overflow = 0;
}

/* The page's entry, made if need be, or NULL. */
static struct rift_emulator_code_page *page_of(struct rift_emulator_code *code, uint64_t gpa, uint32_t first) {
    uint16_t *number = slot(code, gpa);
    if (*number)
        return &code->pages[*number - 1];
    uint8_t *copy = code->count < RIFT_EMULATOR_CODE_PAGES ? malloc(PAGE) : NULL;
    if (!copy)
        return NULL;
    code->pages[code->count] = (struct rift_emulator_code_page){.gpa = gpa, .first = first, .end = first, .copy = copy};
    code->count += 1;
    *number = (uint16_t)code->count;
    return &code->pages[code->count - 1];
}

static void note_in_page(struct rift_emulator_vcpu *vcpu, uint64_t gpa, uint32_t bytes) {
    struct rift_emulator_code *code = &vcpu->code;
    uint64_t start = gpa & ~(PAGE - 1);
    uint32_t first = (uint32_t)(gpa - start), end = first + bytes;
    const uint8_t *memory = rift_emulator_memory(&vcpu->cpu, start, PAGE, 0);
    if (!memory)
        return;
    struct rift_emulator_code_page *page = page_of(code, start, first);
    if (!page) {
        code->overflow = 1; /* too many to watch: from now on everything is translated anew at each look */
        return;
    }
    /* What is known already keeps its old copy: a change that nobody has noticed yet must not be lost. */
    if (first < page->first) {
        memcpy(page->copy + first, memory + first, page->first - first);
        page->first = first;
    }
    if (end > page->end) {
        memcpy(page->copy + page->end, memory + page->end, end - page->end);
        page->end = end;
    }
}

void rift_emulator_code_note(struct rift_emulator_vcpu *vcpu, uint64_t gpa, uint64_t bytes) {
    while (bytes) {
        uint64_t part = PAGE - gpa % PAGE < bytes ? PAGE - gpa % PAGE : bytes;
        note_in_page(vcpu, gpa, (uint32_t)part);
        gpa += part;
        bytes -= part;
    }
}

void rift_emulator_code_flush(struct rift_emulator_vcpu *vcpu) {
    unicorn.ctl(vcpu->cpu.engine, UNICORN_CONTROL_WRITE | UNICORN_CONTROL_FLUSH_CODE);
    forget_all(&vcpu->code);
}

void rift_emulator_code_check(struct rift_emulator_vcpu *vcpu) {
    struct rift_emulator_code *code = &vcpu->code;
    int changed = code->overflow;
    for (uint32_t at = 0; at < code->count && !changed; ++at) {
        const struct rift_emulator_code_page *page = &code->pages[at];
        const uint8_t *memory = rift_emulator_memory(&vcpu->cpu, page->gpa, PAGE, 0);
        changed = !memory || memcmp(memory + page->first, page->copy + page->first, page->end - page->first) != 0;
    }
    if (changed)
        rift_emulator_code_flush(vcpu);
}

void rift_emulator_written(struct rift_emulator_cpu *cpu, uint64_t gpa, uint64_t bytes) {
    struct rift_emulator_vcpu *vcpu = (struct rift_emulator_vcpu *)cpu;
    for (uint64_t page = gpa & ~(PAGE - 1); page < gpa + bytes; page += PAGE)
        if (*slot(&vcpu->code, page))
            vcpu->touched = 1;
}

/* A block has been translated and is about to run. */
static void edge_hook(struct unicorn *engine, struct unicorn_block *block, struct unicorn_block *before,
                      void *context) {
    struct rift_emulator_vcpu *vcpu = context;
    (void)engine;
    (void)before;
    uint64_t at = block->pc, left = block->size;
    while (left) {
        uint64_t part = PAGE - at % PAGE < left ? PAGE - at % PAGE : left, gpa;
        if (vcpu->binding->translate(&vcpu->cpu, at, &gpa) == 0)
            rift_emulator_code_note(vcpu, gpa, part);
        at += part;
        left -= part;
    }
}

int rift_emulator_code_setup(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    vcpu->code.pages = calloc(RIFT_EMULATOR_CODE_PAGES, sizeof(*vcpu->code.pages));
    vcpu->code.index = calloc(RIFT_EMULATOR_CODE_SLOTS, sizeof(*vcpu->code.index));
    if (!vcpu->code.pages || !vcpu->code.index)
        return rift_emulator_fail(error, ENOMEM, "calloc");
    unicorn_hook hook;
    int status = unicorn.hook_add(vcpu->cpu.engine, &hook, UNICORN_HOOK_EDGE, (void *)edge_hook, vcpu, 1, 0);
    return status ? rift_emulator_engine_error(error, status, "uc_hook_add") : 0;
}

void rift_emulator_code_release(struct rift_emulator_vcpu *vcpu) {
    if (vcpu->code.pages && vcpu->code.index)
        forget_all(&vcpu->code);
    free(vcpu->code.pages);
    free(vcpu->code.index);
}
