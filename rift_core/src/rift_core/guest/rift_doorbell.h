/* The doorbell as numbers: the same as rift_core/doorbell.py (a test compares them). Assembler includes this too. */
#ifndef RIFT_DOORBELL_H
#define RIFT_DOORBELL_H

/* Guest-virtual address of the page; -DRIFT_DOORBELL=... moves it together with the configuration's. */
#ifndef RIFT_DOORBELL
#define RIFT_DOORBELL 0x70000000
#endif

#define RIFT_DOORBELL_SIZE 0x1000
#define RIFT_DOORBELL_EXIT 0x000       /* store: end the thread with this status */
#define RIFT_DOORBELL_CONSOLE 0x008    /* store: one byte to the console */
#define RIFT_DOORBELL_USER_FIRST 0x100 /* free for exit handlers of third parties, from here ... */
#define RIFT_DOORBELL_USER_LAST 0x7FF  /* ... to here */
#define RIFT_DOORBELL_RETURN 0x800     /* the entry function returned */
#define RIFT_DOORBELL_FAULT 0x808      /* an exception that nothing in the guest handled */
#define RIFT_DOORBELL_USER_CALL 0x810  /* a system call arrived from user mode */

/* Numbers of rift_user_call(): what user mode asks of the host. All others below 0x1000 are reserved. */
#define RIFT_CALL_EXIT 0           /* (status): end the thread */
#define RIFT_CALL_CONSOLE 1        /* (pointer, length): bytes to the console; returns their number */
#define RIFT_CALL_RETURN 2         /* (value): the entry function returned */
#define RIFT_CALL_DOORBELL_WRITE 3 /* (offset, value): a store of 8 bytes to the doorbell */
#define RIFT_CALL_DOORBELL_READ 4  /* (offset): a load of 8 bytes from the doorbell */
#define RIFT_CALL_HANDLERS 0x1000  /* first number for exit handlers that serve USER_CALL */

#endif
