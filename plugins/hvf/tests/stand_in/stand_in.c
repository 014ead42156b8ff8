#include "stand_in.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct stand_in_options stand_in_options;

enum { MOST_FUNCTIONS = 128, MOST_NAME = 64 };

static struct {
    pthread_mutex_t lock;
    struct {
        char name[MOST_NAME];
        unsigned calls, fail_in; /* fail_in: the call that fails, counted down; 0: none */
    } functions[MOST_FUNCTIONS];
    unsigned count;
} table = {.lock = PTHREAD_MUTEX_INITIALIZER};

static atomic_uint violations;

/* The function's place in the table. Under the lock. */
static unsigned place_of(const char *name) {
    unsigned at = 0;
    while (at < table.count && strcmp(table.functions[at].name, name) != 0)
        ++at;
    if (at == table.count && at + 1 < MOST_FUNCTIONS) {
        snprintf(table.functions[at].name, MOST_NAME, "%s", name);
        table.functions[at].calls = table.functions[at].fail_in = 0;
        table.count += 1;
    }
    return at;
}

int stand_in_call(const char *function) {
    int answer = HV_SUCCESS;
    pthread_mutex_lock(&table.lock);
    unsigned at = place_of(function);
    table.functions[at].calls += 1;
    if (table.functions[at].fail_in && --table.functions[at].fail_in == 0)
        answer = HV_ERROR;
    pthread_mutex_unlock(&table.lock);
    return answer;
}

void stand_in_violation(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("stand-in: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    atomic_fetch_add(&violations, 1);
}

int stand_in_due(atomic_uint *count, unsigned every) {
    return every && atomic_fetch_add(count, 1) % every == every - 1;
}

static void reset(void) {
    stand_in_options = (struct stand_in_options){0};
    pthread_mutex_lock(&table.lock);
    table.count = 0;
    pthread_mutex_unlock(&table.lock);
    atomic_store(&violations, 0);
}

static void fail_later(const char *text) {
    char name[MOST_NAME];
    unsigned number;
    if (sscanf(text, "%63[^:]:%u", name, &number) != 2) {
        stand_in_violation("fail=%s is not FUNCTION:N", text);
        return;
    }
    pthread_mutex_lock(&table.lock);
    table.functions[place_of(name)].fail_in = number;
    pthread_mutex_unlock(&table.lock);
}

static void control_word(const char *word) {
    static const struct {
        const char *word;
        int *option;
    } options[] = {
        {"deny", &stand_in_options.deny},
        {"unsupported", &stand_in_options.unsupported},
        {"lose_kicks", &stand_in_options.lose_kicks},
        {"demanding", &stand_in_options.demanding},
        {"no_native_msrs", &stand_in_options.no_native_msrs},
        {"no_deadlines", &stand_in_options.no_deadlines},
        {"fixed_numbers", &stand_in_options.fixed_numbers},
    };
    for (unsigned at = 0; at < sizeof(options) / sizeof(options[0]); ++at)
        if (strcmp(word, options[at].word) == 0) {
            *options[at].option = 1;
            return;
        }
    if (strcmp(word, "reset") == 0)
        reset();
    else if (strncmp(word, "fail=", 5) == 0)
        fail_later(word + 5);
    else if (sscanf(word, "spurious_ept=%u", &stand_in_options.spurious_ept) != 1 &&
             sscanf(word, "irq=%u", &stand_in_options.irq) != 1 &&
             sscanf(word, "first_id=%u", &stand_in_options.first_id) != 1 &&
             sscanf(word, "ipa_bits=%u", &stand_in_options.ipa_bits) != 1)
        stand_in_violation("unknown word %s", word);
}

void rift_stand_in_control(const char *words) {
    char *copy = strdup(words), *rest = copy, *word;
    while ((word = strsep(&rest, " ")))
        if (*word)
            control_word(word);
    free(copy);
}

unsigned rift_stand_in_calls(const char *function) {
    pthread_mutex_lock(&table.lock);
    unsigned calls = table.functions[place_of(function)].calls;
    pthread_mutex_unlock(&table.lock);
    return calls;
}

unsigned rift_stand_in_violations(void) {
    return atomic_load(&violations);
}

__attribute__((constructor)) static void take_environment(void) {
    const char *words = getenv("RIFT_STAND_IN");
    if (words)
        rift_stand_in_control(words);
}
