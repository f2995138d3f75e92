#include "transfer/ask.h"

#include <stdio.h>

#include "base/os.h"

enum { QUESTION_BYTES_MAX = 256 };

void
lli_ask_send(struct lli_link *link, struct lli_ask *ask, enum lli_message_type type,
             const struct lli_request *request)
{
    uint8_t bytes[QUESTION_BYTES_MAX];
    struct lli_writer w;
    struct lli_request question = *request;
    question.kind = LLI_REQUEST_SLOT;
    question.num_runs = question.num_source_runs = 0;
    question.notification_bytes = 0;
    lli_writer_init(&w, bytes, sizeof(bytes));
    lli_request_write(&w, &question);
    // The two ends of a link number what they begin apart.
    ask->id =
        (atomic_fetch_add(&link->node->next_transfer, 1) + 1) * 2 + (link->connected_by_us ? 1 : 0);
    lli_list_append(&link->asks, &ask->node);
    lli_link_send(link, type, ask->id, bytes, w.size);
}

void
lli_ask_forget(struct lli_ask *ask)
{
    lli_list_remove(&ask->node);
}

static struct lli_ask *
find(struct lli_link *link, uint64_t id)
{
    LLI_LIST_FOR(node, &link->asks) {
        struct lli_ask *ask = LLI_LIST_ENTRY(node, struct lli_ask, node);
        if (ask->id == id)
            return ask;
    }
    return NULL;
}

bool
lli_asks_message(struct lli_link *link, const struct lli_message_header *header,
                 struct lli_reader *body)
{
    struct lli_outcome outcome;
    struct lli_answer answer = {0};
    if (!lli_outcome_read(body, &outcome) ||
        (outcome.status == LLM_SUCCESS && !lli_answer_read(body, &answer)))
        return false;
    struct lli_ask *ask = find(link, header->transfer_id);
    // It may have been forgotten.
    if (ask == NULL)
        return true;
    lli_list_remove(&ask->node);
    ask->answered(ask, outcome.status, outcome.text, &answer);
    return true;
}

void
lli_asks_broken(struct lli_link *link, llm_status status)
{
    static const struct lli_answer none;
    while (!lli_list_empty(&link->asks)) {
        struct lli_ask *ask = LLI_LIST_ENTRY(link->asks.next, struct lli_ask, node);
        lli_list_remove(&ask->node);
        ask->answered(ask, status, link->broken_reason, &none);
    }
}

// ---- waiting ----

struct waiter {
    struct lli_ask ask;
    struct lli_link *link;
    enum lli_message_type type;
    const struct lli_request *request;
    struct lli_answer *answer;
    char *why;
    size_t why_size;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done; // guarded by lock, as what follows
    llm_status status;
};

static void
wake(struct lli_ask *ask, llm_status status, const char *text, const struct lli_answer *answer)
{
    struct waiter *waiter = LLI_CONTAINER_OF(ask, struct waiter, ask);
    pthread_mutex_lock(&waiter->lock);
    waiter->status = status;
    *waiter->answer = *answer;
    snprintf(waiter->why, waiter->why_size, "%s", text);
    waiter->done = true;
    pthread_cond_signal(&waiter->changed);
    pthread_mutex_unlock(&waiter->lock);
}

static void
begin(void *arg)
{
    struct waiter *waiter = arg;
    static const struct lli_answer none;
    if (lli_link_is_broken(waiter->link))
        wake(&waiter->ask, waiter->link->broken_status, waiter->link->broken_reason, &none);
    else
        lli_ask_send(waiter->link, &waiter->ask, waiter->type, waiter->request);
}

static void
give_up(void *arg)
{
    struct waiter *waiter = arg;
    lli_ask_forget(&waiter->ask);
}

static bool
wait_until(struct waiter *waiter, uint64_t deadline_ns)
{
    bool in_time = true;
    pthread_mutex_lock(&waiter->lock);
    while (!waiter->done && in_time)
        in_time = lli_cond_wait_until(&waiter->changed, &waiter->lock, deadline_ns);
    bool done = waiter->done;
    pthread_mutex_unlock(&waiter->lock);
    return done;
}

llm_status
lli_ask_and_wait(struct lli_link *link, enum lli_message_type type,
                 const struct lli_request *request, const struct lli_interrupt *interrupt,
                 uint64_t deadline_ns, struct lli_answer *ret_answer, char *why, size_t why_size)
{
    struct waiter waiter = {
        .ask.answered = wake,
        .link = link,
        .type = type,
        .request = request,
        .answer = ret_answer,
        .why = why,
        .why_size = why_size,
    };
    lli_list_init(&waiter.ask.node);
    pthread_mutex_init(&waiter.lock, NULL);
    lli_cond_init(&waiter.changed);
    lli_loop_call(link->node->loop, begin, &waiter);
    llm_status given_up = LLM_TRANSFER_PENDING;
    while (given_up == LLM_TRANSFER_PENDING) {
        if (wait_until(&waiter, lli_interrupt_slice(interrupt, deadline_ns)))
            break;
        given_up = lli_interrupt_ask(interrupt, deadline_ns);
    }
    if (given_up != LLM_TRANSFER_PENDING) {
        lli_loop_call(link->node->loop, give_up, &waiter);
        // It may have been answered at the last moment.
        if (!wait_until(&waiter, 0)) {
            waiter.status = given_up;
            snprintf(why, why_size, "the peer has not answered: %s", lli_interrupt_text(given_up));
        }
    }
    pthread_cond_destroy(&waiter.changed);
    pthread_mutex_destroy(&waiter.lock);
    return waiter.status;
}
