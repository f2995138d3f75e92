#include "engine/engine.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/address.h"
#include "base/cgroup.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "cache/holds.h"
#include "link/connect.h"
#include "link/paths.h"
#include "transfer/answer.h"
#include "transfer/ask.h"
#include "transfer/copies.h"
#include "transfer/cuts.h"
#include "transfer/notify.h"
#include "transfer/serve.h"
#include "transfer/transfer.h"

// Beats per liveness time.  However long that is, the time limits of started transfers and of
// strangers are looked at as often as the default.
enum { TICKS_PER_LIVENESS = 5, TICK_MS_MIN = 10, TICK_MS_MAX = 100 };

// ---- what the rooms tell each other ----

static void on_message(struct lli_link *link, const struct lli_message_header *header,
                       struct lli_reader *body);

static void
on_broken(struct lli_link *link, llm_status status)
{
    lli_transfers_broken(link, status);
    lli_asks_broken(link, status);
    lli_serves_broken(link);
}

static void
tick(void *arg, uint64_t now_ns)
{
    struct llm_datadist *dd = arg;
    lli_log_left_out(now_ns);
    lli_links_tick(&dd->node);
    lli_paths_tick(&dd->node);
    lli_accept_tick(&dd->node);
    lli_transfers_tick(&dd->node, now_ns);
    lli_registry_collect(&dd->registry);
    lli_serves_tick(&dd->node);
}

static bool
idle(void *arg)
{
    struct llm_datadist *dd = arg;
    return lli_copies_idle(&dd->node);
}

static void
lease_ended(void *arg)
{
    struct llm_datadist *dd = arg;
    lli_transfer_announce_end(&dd->node);
}

static bool
is_read(void *arg, uint64_t generation)
{
    struct llm_datadist *dd = arg;
    return lli_links_is_read(&dd->node, generation);
}

bool
lli_engine_link_is_active(struct lli_link *link)
{
    pthread_mutex_lock(&link->node->links_lock);
    bool active = link->num_active > 0;
    pthread_mutex_unlock(&link->node->links_lock);
    return active;
}

bool
lli_engine_link_has_work(struct lli_link *link)
{
    pthread_mutex_lock(&link->node->links_lock);
    bool active = link->num_active > 0;
    bool broken = link->broken;
    pthread_mutex_unlock(&link->node->links_lock);
    // What a dead peer has announced stays announced; nobody waits for a broken link's reader.
    bool read_by_peer =
        link->view != NULL && !broken &&
        lli_segment_is_read(link->view->segment, link->node->identity.incarnation, 0);
    // The peer may know of the end of a pull before the thread that sent its last bytes has said so.
    if (!lli_list_empty(&link->serves))
        lli_stream_settle(&link->stream);
    return active || read_by_peer || !lli_list_empty(&link->serves);
}

static void
peer_unlinks(struct lli_link *link)
{
    if (lli_engine_link_has_work(link)) {
        lli_link_send_outcome(link, LLI_UNLINK_REPLY, 0, LLM_LINK_BUSY,
                              "a transfer runs on the link");
        return;
    }
    lli_log(LLM_LOG_INFO, "link", "cluster %llu has unlinked",
            (unsigned long long)link->peer.cluster_id);
    // First the table, then the word: when the peer's call returns, nobody finds the link here (§6.2).
    bool was_in_table = lli_links_hide(link);
    lli_link_send_outcome(link, LLI_UNLINK_REPLY, 0, LLM_SUCCESS, "");
    // The answer has left, or the peer takes the closing for one.
    lli_links_remove_here(link);
    if (was_in_table)
        lli_link_put(link);
}

static void
on_message(struct lli_link *link, const struct lli_message_header *header, struct lli_reader *body)
{
    struct lli_outcome outcome;
    bool ok;
    switch (header->type) {
    case LLI_PULL:
    case LLI_PUSH:
    case LLI_CANCEL:
    case LLI_NOTIFY:
        ok = lli_serves_message(link, header, body);
        break;
    case LLI_RESULT:
    case LLI_PUSH_ACCEPTED:
    case LLI_CANCELLED:
        ok = lli_transfers_message(link, header, body);
        break;
    case LLI_QUERY:
    case LLI_DONE:
        ok = lli_answers_message(link, header, body);
        break;
    case LLI_ANSWER:
        ok = lli_asks_message(link, header, body);
        break;
    case LLI_UNLINK:
        peer_unlinks(link);
        ok = true;
        break;
    case LLI_UNLINK_REPLY:
        ok = lli_outcome_read(body, &outcome);
        if (ok)
            lli_link_unlink_answered(link, outcome.status);
        break;
    default:
        ok = false;
    }
    if (!ok)
        lli_link_break(link, LLM_FAILED, "the peer sent a malformed or unexpected message");
}

// ---- opening, in order; closing, in reverse ----

static pthread_mutex_t token_lock = PTHREAD_MUTEX_INITIALIZER;

static uint64_t
process_token(void)
{
    static uint64_t token;       // guarded by token_lock
    static pid_t token_pid;      // likewise
    static unsigned token_forks; // likewise
    pthread_mutex_lock(&token_lock);
    // A forked child is another process, in a pid namespace of its own perhaps of the same number.
    if (token_pid != getpid() || token_forks != lli_fork_count())
        token = lli_random_u64();
    token_pid = getpid();
    token_forks = lli_fork_count();
    uint64_t own = token;
    pthread_mutex_unlock(&token_lock);
    return own;
}

// Another thread of the parent's may have held any lock.  Those of instances stay as they are: nobody
// touches the parent's instances here.
static void
in_child(void)
{
    lli_fork_in_child();
    lli_log_in_child();
    lli_segment_in_child();
    lli_holds_in_child();
    lli_views_in_child();
    lli_lookups_in_child();
    pthread_mutex_init(&token_lock, NULL);
}

static void
watch_forks(void)
{
    // Without memory for it a child does without.
    (void)pthread_atfork(NULL, NULL, in_child);
}

static uint32_t
transport_bits(const struct lli_options *options)
{
    uint32_t bits = 0;
    for (size_t i = 0; i < options->num_transports; i++)
        bits |= 1u << options->transports[i];
    return bits;
}

static void
fill_identity(struct llm_datadist *dd)
{
    struct lli_identity *identity = &dd->node.identity;
    memset(identity, 0, sizeof(*identity));
    identity->cluster_id = dd->cluster_id;
    identity->incarnation = lli_random_u64() | 1;
    identity->process_token = process_token();
    if (!lli_boot_id(identity->boot_id))
        memset(identity->boot_id, 0, sizeof(identity->boot_id));
    identity->num_devices = (uint32_t)dd->options.num_devices;
    identity->transports = transport_bits(&dd->options) | LLI_PROBES;
    identity->liveness_ms = dd->options.liveness_ms;
    identity->role = (uint32_t)atomic_load(&dd->role);
    identity->checksum = dd->options.checksum;
}

static void
close_pools(struct llm_datadist *dd, size_t num_pools)
{
    for (size_t i = 0; i < num_pools; i++) {
        lli_memory_file_let_go(dd->memory[i].fd);
        lli_pool_close(&dd->pools[i]);
    }
    lli_free(dd->memory);
    lli_free(dd->pools);
    dd->pools = NULL;
}

// Of each device's pool.  Without an option the devices share what there is; what the program asks for
// it gets.
static llm_status
choose_pool_bytes(const struct lli_options *options, uint64_t *ret_bytes)
{
    char who[LLI_CGROUP_WHO_BYTES];
    uint64_t limit;
    if (!lli_memory_limit_bytes(&limit, who))
        return lli_fail(LLM_FAILED, "engine", "no memory to find out how much memory there is");
    uint64_t share = lli_max(limit / options->num_devices, 1);
    uint64_t wanted = lli_pool_size(options->pool_bytes, options->tiers, options->num_tiers);
    if (wanted > share)
        lli_log(
            LLM_LOG_WARN, "engine",
            "llm.BufPoolCfg asks for %zu pool(s) of %llu bytes, but %s leaves %llu bytes to this "
            "process: it may be killed when it uses more",
            options->num_devices, (unsigned long long)wanted, who, (unsigned long long)limit);
    *ret_bytes = wanted > 0 ? wanted : share;
    return LLM_SUCCESS;
}

static llm_status
open_pools(struct llm_datadist *dd)
{
    const struct lli_options *options = &dd->options;
    uint64_t bytes;
    LLI_TRY(choose_pool_bytes(options, &bytes));
    dd->pools = lli_calloc(options->num_devices, sizeof(*dd->pools));
    dd->memory = lli_calloc(options->num_devices, sizeof(*dd->memory));
    if (dd->pools == NULL || dd->memory == NULL) {
        close_pools(dd, 0);
        return lli_fail(LLM_FAILED, "engine", "no memory for %zu pools", options->num_devices);
    }
    for (size_t i = 0; i < options->num_devices; i++) {
        llm_status status = lli_pool_open(&dd->pools[i], bytes, options->tiers, options->num_tiers);
        if (status != LLM_SUCCESS) {
            close_pools(dd, i);
            return status;
        }
        const struct lli_pool *pool = &dd->pools[i];
        dd->memory[i] = (struct lli_memory_file){
            .base = pool->base,
            .bytes = pool->bytes,
            .fd = lli_memory_file_open_again(pool->fd),
        };
    }
    return LLM_SUCCESS;
}

static llm_status
open_node(struct llm_datadist *dd, uint32_t tick_ms)
{
    struct lli_node *node = &dd->node;
    struct lli_identity identity = node->identity;
    memset(node, 0, sizeof(*node));
    node->identity = identity;
    node->options = &dd->options;
    node->loop = &dd->loop;
    node->lanes = &dd->lanes;
    node->registry = &dd->registry;
    node->segment = &dd->segment;
    node->pools = dd->pools;
    node->holes = (struct lli_holes){.files = dd->memory, .num_files = dd->options.num_devices};
    node->crew = &dd->crew;
    node->on_message = on_message;
    node->on_broken = on_broken;
    node->transfer_fd = lli_keep_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    node->event_fd = lli_keep_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    node->notifications = lli_notifications_open();
    if (node->transfer_fd < 0 || node->event_fd < 0 || node->notifications == NULL) {
        if (node->transfer_fd >= 0)
            close(node->transfer_fd);
        if (node->event_fd >= 0)
            close(node->event_fd);
        lli_notifications_close(node->notifications);
        return lli_fail(LLM_FAILED, "engine", "out of memory or descriptors");
    }
    lli_node_open(node, tick_ms);
    lli_lanes_init(&dd->lanes, &dd->loop, dd->options.tcp_connections);
    lli_crew_open(&dd->crew, dd->options.copy_threads);
    return LLM_SUCCESS;
}

static void
close_node(struct llm_datadist *dd)
{
    lli_crew_close(&dd->crew);
    lli_transfers_release_all(&dd->node);
    lli_cuts_forget_all(&dd->node);
    lli_node_close(&dd->node);
    lli_notifications_close(dd->node.notifications);
    close(dd->node.transfer_fd);
    close(dd->node.event_fd);
}

static void
name_thread(void *arg)
{
    struct llm_datadist *dd = arg;
    lli_log_speak_for(dd->cluster_id);
    LLI_STORE(dd->segment.layout->header.own_thread, (uint64_t)gettid());
}

static llm_status
start_loop(struct llm_datadist *dd)
{
    struct lli_options *options = &dd->options;
    llm_status status = lli_exchange_listen(&dd->node, &dd->exchange);
    if (status != LLM_SUCCESS)
        return status;
    status = lli_listeners_open(&dd->node, options->listen, options->num_listen, &dd->listeners);
    if (status != LLM_SUCCESS)
        goto close_exchange;
    status = lli_listeners_start(&dd->listeners);
    if (status == LLM_SUCCESS)
        status = lli_loop_start(&dd->loop);
    if (status != LLM_SUCCESS)
        goto close_listeners;
    lli_loop_call(&dd->loop, name_thread, dd);
    return LLM_SUCCESS;

close_listeners:
    lli_listeners_close(&dd->node, &dd->listeners);
close_exchange:
    lli_exchange_listener_close(&dd->exchange);
    return status;
}

static llm_status
open_rooms(struct llm_datadist *dd)
{
    uint32_t tick_ms = (uint32_t)lli_min(
        lli_max(dd->options.liveness_ms / TICKS_PER_LIVENESS, TICK_MS_MIN), TICK_MS_MAX);
    uint64_t patience_ns =
        LLI_MS_TO_NS((uint64_t)dd->options.sync_wait_ms + dd->options.liveness_ms);
    llm_status status = open_pools(dd);
    if (status != LLM_SUCCESS)
        return status;
    // Check 10 of §5.3 comes after the devices.
    fill_identity(dd);
    status = lli_segment_open(&dd->segment, dd->cluster_id, dd->node.identity.incarnation,
                              dd->options.num_devices);
    if (status != LLM_SUCCESS)
        goto close_pools;
    status = lli_loop_open(&dd->loop, tick_ms, tick, idle, dd);
    if (status != LLM_SUCCESS)
        goto close_segment;
    status = open_node(dd, tick_ms);
    if (status != LLM_SUCCESS)
        goto close_loop;
    lli_registry_open(&dd->registry, &dd->segment, dd->pools, dd->options.num_devices, patience_ns,
                      is_read, dd);
    dd->registry.on_lease_ended = lease_ended;
    status = start_loop(dd);
    if (status != LLM_SUCCESS)
        goto close_registry;
    return LLM_SUCCESS;

close_registry:
    lli_registry_close(&dd->registry);
    close_node(dd);
close_loop:
    lli_loop_close(&dd->loop);
close_segment:
    lli_segment_close(&dd->segment);
close_pools:
    close_pools(dd, dd->options.num_devices);
    return status;
}

llm_status
lli_engine_open(struct llm_datadist *dd, const llm_option *options, size_t num_options)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    llm_role role = (llm_role)atomic_load(&dd->role);
    pthread_once(&once, watch_forks);
    LLI_TRY(lli_options_parse(options, num_options, role, &dd->options));
    llm_status status = lli_options_parse_tiers(&dd->options);
    if (status == LLM_SUCCESS)
        status = open_rooms(dd);
    if (status != LLM_SUCCESS)
        lli_options_fini(&dd->options);
    else
        atomic_store(&dd->version_2, dd->options.version_2);
    dd->pid = getpid();
    dd->num_forks = lli_fork_count();
    return status;
}

void
lli_engine_forget(struct llm_datadist *dd)
{
    static struct forgotten {
        struct forgotten *next;
        struct llm_datadist dd;
    } * _Atomic all;
    // What it points to stays where leak checkers find it.
    struct forgotten *forgotten = lli_malloc(sizeof(*forgotten));
    if (forgotten != NULL) {
        memcpy(&forgotten->dd, dd, sizeof(*dd));
        forgotten->next = atomic_load(&all);
        while (!atomic_compare_exchange_weak(&all, &forgotten->next, forgotten)) {
        }
    }
    uint64_t cluster_id = dd->cluster_id;
    int role = atomic_load(&dd->role);
    memset(dd, 0, sizeof(*dd));
    dd->cluster_id = cluster_id;
    atomic_init(&dd->role, role);
    pthread_mutex_init(&dd->life_lock, NULL);
}

static void
remove_all_links(struct llm_datadist *dd)
{
    struct lli_node *node = &dd->node;
    LLI_LIST_FOR(item, &node->links)
        lli_links_remove_here(LLI_LIST_ENTRY(item, struct lli_link, in_table));
}

void
lli_engine_close(struct llm_datadist *dd)
{
    lli_link_end_asides(&dd->node);
    lli_loop_stop(&dd->loop);
    // From here on this thread is the loop's.
    lli_listeners_close(&dd->node, &dd->listeners);
    lli_exchange_listener_close(&dd->exchange);
    lli_accept_end_all(&dd->node);
    remove_all_links(dd);
    lli_loop_close(&dd->loop);
    lli_registry_close(&dd->registry);
    close_node(dd);
    lli_segment_close(&dd->segment);
    close_pools(dd, dd->options.num_devices);
    lli_options_fini(&dd->options);
}

// ---- changing the listener ----

struct swap {
    struct llm_datadist *dd;
    struct lli_listeners listeners;
    llm_status status;
    char why[LLI_REASON_BYTES]; // for the caller's thread
};

static void
swap_listeners(void *arg)
{
    struct swap *swap = arg;
    struct llm_datadist *dd = swap->dd;
    swap->status = lli_listeners_start(&swap->listeners);
    if (swap->status != LLM_SUCCESS) {
        llm_last_error(swap->why, sizeof(swap->why));
        lli_listeners_close(&dd->node, &swap->listeners);
        return;
    }
    lli_listeners_close(&dd->node, &dd->listeners);
    dd->listeners = swap->listeners;
}

static bool
listens_at(const struct llm_datadist *dd, const struct lli_endpoint *place)
{
    return place != NULL && dd->listeners.num_devices == 1 && place->port != 0 &&
           lli_endpoint_equal(place, &dd->listeners.of_device[0]->place);
}

llm_status
lli_engine_relisten(struct llm_datadist *dd, const struct lli_endpoint *place)
{
    struct swap swap = {.dd = dd};
    if (listens_at(dd, place))
        return LLM_SUCCESS;
    if (place != NULL)
        LLI_TRY(lli_listeners_open(&dd->node, place, 1, &swap.listeners));
    lli_loop_call(&dd->loop, swap_listeners, &swap);
    if (swap.status != LLM_SUCCESS)
        lli_set_last_error(swap.why);
    return swap.status;
}
