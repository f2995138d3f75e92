#include "notes.h"

#include <string.h>

enum { NOTES_MAX = 1 << 16 };

struct note {
    const struct node *to;
    const struct sim_process *to_process;
    uint64_t from;
    bool push;
    bool sent;
    bool must_arrive;
    bool arrived;
};

static struct note notes[NOTES_MAX]; // by the operation's number
static uint64_t num_notes;

size_t
notes_write(uint8_t *bytes, size_t size, const struct op *op, const struct node *to)
{
    size_t num_bytes = sizeof(op->serial) + (size_t)sim_below(size - sizeof(op->serial) + 1);
    memset(bytes, (uint8_t)op->serial, size);
    memcpy(bytes, &op->serial, sizeof(op->serial));
    if (op->serial >= NOTES_MAX)
        return num_bytes;
    notes[op->serial] = (struct note){.to = to,
                                      .to_process = to->seat->process,
                                      .from = op->node->cluster_id,
                                      .push = op->push,
                                      .sent = true};
    if (op->serial >= num_notes)
        num_notes = op->serial + 1;
    return num_bytes;
}

void
notes_op_ended(const struct op *op, const struct node *to, llm_status status)
{
    if (!op->notified || op->serial >= NOTES_MAX)
        return;
    struct note *note = &notes[op->serial];
    // That of a pull follows it, and goes down with the link.
    note->must_arrive = status == LLM_SUCCESS && (op->push || scenario.calm) &&
                        note->to_process == to->seat->process;
}

void
notes_read(const uint8_t *bytes, size_t num_bytes, const struct node *node, uint64_t from)
{
    uint64_t serial = 0;
    if (num_bytes >= sizeof(serial))
        memcpy(&serial, bytes, sizeof(serial));
    if (serial >= NOTES_MAX)
        return;
    struct note *note = &notes[serial];
    for (size_t i = sizeof(serial); i < num_bytes; i++) {
        if (bytes[i] != (uint8_t)serial)
            sim_fail("the notification of op %llu is garbled", (unsigned long long)serial);
    }
    if (!note->sent || note->to != node || note->from != from)
        sim_fail("cluster %llu got a notification that nobody sent it",
                 (unsigned long long)node->cluster_id);
    if (note->arrived)
        sim_fail("the notification of op %llu came twice", (unsigned long long)serial);
    note->arrived = true;
    scenario.notes++;
    const struct op *op = model_op_find(serial);
    if (note->push && op != NULL && !model_op_arrived(op))
        sim_fail("the notification of op %llu came before its bytes", (unsigned long long)serial);
}

void
notes_check(const struct node *node)
{
    for (uint64_t i = 0; i < num_notes; i++) {
        const struct note *note = &notes[i];
        if (note->must_arrive && !note->arrived && note->to == node &&
            note->to_process == sim_current_process())
            sim_fail("the notification of op %llu, which succeeded, never came",
                     (unsigned long long)i);
    }
}

void
notes_reset(void)
{
    memset(notes, 0, num_notes * sizeof(*notes));
    num_notes = 0;
}
