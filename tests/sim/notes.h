// Notifications: each carries the number of its operation, and arrives once, after the bytes.
#ifndef SIM_NOTES_H
#define SIM_NOTES_H

#include "scenario.h"

size_t notes_write(uint8_t *bytes, size_t size, const struct op *op, const struct node *to);
void notes_op_ended(const struct op *op, const struct node *to, llm_status status);
void notes_read(const uint8_t *bytes, size_t num_bytes, const struct node *node, uint64_t from);
// All that must have arrived at that node has.
void notes_check(const struct node *node);
void notes_reset(void);

#endif
