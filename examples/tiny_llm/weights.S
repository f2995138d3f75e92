// weights.S - puts tiny.bin into the program: the bytes from tiny_weights to tiny_weights_end.
//
// Compiled with -DTINY_WEIGHTS_PATH='"/path/of/tiny.bin"', or with the file's folder in the include
// path, where the assembler looks for it.
#ifndef TINY_WEIGHTS_PATH
#define TINY_WEIGHTS_PATH "tiny.bin"
#endif

        .section .rodata
        .balign 64
        .globl tiny_weights
        .hidden tiny_weights
        .type tiny_weights, %object
tiny_weights:
        .incbin TINY_WEIGHTS_PATH
        .size tiny_weights, . - tiny_weights
        .globl tiny_weights_end
        .hidden tiny_weights_end
        .type tiny_weights_end, %object
tiny_weights_end:
        .byte 0

        .section .note.GNU-stack, "", %progbits
