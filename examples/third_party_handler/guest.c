/* Rolls the die that rift_dice.py offers at the doorbell's first free register. */
#include <rift_guest.h>

enum { DICE = RIFT_DOORBELL_USER_FIRST };

static void roll(const char *what, int times) {
    rift_printf("%s:", what);
    for (int i = 0; i < times; ++i)
        rift_printf(" %llu", (unsigned long long)rift_doorbell_read(DICE));
    rift_puts("\n");
}

int main(void) {
    roll("six sides", 8);
    rift_doorbell_write(DICE, 20);
    roll("twenty sides", 8);
    return 0;
}
