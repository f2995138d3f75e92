// The yardstick UCX, in a program of its own: gets of scattered blocks out of another process.
//
//     bench-ucx FD
//
// `llm-datadist bench` starts it and gives its orders over FD, as it does with the owner.  It forks:
// the child is the target, which holds the memory, and the parent fetches.  Both have one context for
// each way, over the same memory.
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#include "bench.h"

enum { GETS_PER_FLUSH = 4096, PROGRESS_PER_LOOK = 64, PACKED_BYTES_MAX = 4096, STOP = 255 };

struct way {
    const char *transports; // UCX_TLS, or NULL: UCX chooses
    bool detects_failures;
    bool target_works; // gets don't go by without it
};

static const struct way ways[BENCH_UCX_WAYS] = {
    [BENCH_UCX_CMA] = {"posix,cma", false, false},
    [BENCH_UCX_TCP] = {"tcp", false, true},
    [BENCH_UCX_DETECT] = {NULL, true, true},
};

// Versions without today's protocols (1.13 was tried) get nothing over cma: they send a message to the
// target, which sends the bytes through shared memory.
enum { UCX_MINOR_OF_PROTOCOLS = 16 };

static bool
needs_target(size_t way)
{
    unsigned major, minor, release;
    ucp_get_version(&major, &minor, &release);
    return ways[way].target_works || (major == 1 && minor < UCX_MINOR_OF_PROTOCOLS);
}

struct context {
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_mem_h memory;
    ucp_ep_h ep; // of the one that fetches
    ucp_rkey_h rkey;
};

// What the target tells of one way.
struct packed {
    uint32_t address_bytes, rkey_bytes;
    uint8_t address[PACKED_BYTES_MAX], rkey[PACKED_BYTES_MAX];
};

struct process {
    struct bench_work work;
    struct bench_blocks blocks;
    struct bench_memory memory; // addresses here
    struct bench_pieces pieces; // of the blocks here
    struct bench_memory target_memory;
    struct bench_pieces target_pieces;
    uint8_t *bytes;
    size_t num_bytes;
    struct context contexts[BENCH_UCX_WAYS];
    int pid; // of the target
    int fd;  // to the other of the two
};

static bool
failed(struct bench_error *error, const char *call, ucs_status_t status)
{
    return bench_fail(error, "%s: %s", call, ucs_status_string(status));
}

// ---- what both do ----

static bool
map_memory(struct process *p, struct bench_error *error)
{
    p->num_bytes = bench_work_memory(&p->work);
    p->bytes = mmap(NULL, p->num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p->bytes == MAP_FAILED)
        return bench_fail(error, "mmap: %s", strerror(errno));
    uint8_t *at = p->bytes;
    for (uint32_t i = 0; i < p->work.num_parts; i++) {
        const struct bench_part *part = &p->work.parts[i];
        for (uint32_t t = 0; t < part->num_tensors; t++, at += part->num_slots * part->block_bytes)
            p->memory.parts[i].tensors[t] = (uintptr_t)at;
    }
    return true;
}

static bool
open_context(struct context *c, const struct way *way, struct bench_error *error)
{
    ucp_config_t *config;
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES,
        .features = UCP_FEATURE_RMA,
    };
    ucp_worker_params_t worker = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return failed(error, "ucp_config_read", status);
    if (way->transports != NULL)
        status = ucp_config_modify(config, "TLS", way->transports);
    if (status == UCS_OK)
        status = ucp_init(&params, config, &c->context);
    ucp_config_release(config);
    if (status != UCS_OK)
        return failed(error, "ucp_init", status);
    status = ucp_worker_create(c->context, &worker, &c->worker);
    return status == UCS_OK || failed(error, "ucp_worker_create", status);
}

static bool
open_contexts(struct process *p, struct bench_error *error)
{
    for (size_t i = 0; i < BENCH_UCX_WAYS; i++) {
        struct context *c = &p->contexts[i];
        ucp_mem_map_params_t map = {
            .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
            .address = p->bytes,
            .length = p->num_bytes,
        };
        if (!open_context(c, &ways[i], error))
            return false;
        ucs_status_t status = ucp_mem_map(c->context, &map, &c->memory);
        if (status != UCS_OK)
            return failed(error, "ucp_mem_map", status);
    }
    return true;
}

// ---- the target ----

static bool
tell(struct process *p, struct context *c, struct bench_error *error)
{
    struct packed packed = {0};
    ucp_address_t *address;
    size_t address_bytes, rkey_bytes;
    void *rkey;
    ucs_status_t status = ucp_worker_get_address(c->worker, &address, &address_bytes);
    if (status != UCS_OK)
        return failed(error, "ucp_worker_get_address", status);
    status = ucp_rkey_pack(c->context, c->memory, &rkey, &rkey_bytes);
    if (status != UCS_OK)
        return failed(error, "ucp_rkey_pack", status);
    if (address_bytes > PACKED_BYTES_MAX || rkey_bytes > PACKED_BYTES_MAX)
        return bench_fail(error, "UCX packs %zu and %zu bytes", address_bytes, rkey_bytes);
    packed.address_bytes = (uint32_t)address_bytes;
    packed.rkey_bytes = (uint32_t)rkey_bytes;
    memcpy(packed.address, address, address_bytes);
    memcpy(packed.rkey, rkey, rkey_bytes);
    ucp_rkey_buffer_release(rkey);
    ucp_worker_release_address(c->worker, address);
    return bench_send_all(p->fd, &packed, sizeof(packed)) || bench_fail(error, "send failed");
}

// Lends a way its hands until told to stop.
static bool
work_for(struct process *p, uint8_t way)
{
    uint8_t word;
    for (;;) {
        for (unsigned i = 0; i < PROGRESS_PER_LOOK; i++)
            ucp_worker_progress(p->contexts[way].worker);
        if (recv(p->fd, &word, 1, MSG_DONTWAIT) == 1)
            return word == STOP;
        if (errno != EAGAIN)
            return false;
    }
}

static int
target_main(struct process *p)
{
    struct bench_error error;
    uint8_t way;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    bool ok = map_memory(p, &error);
    if (ok)
        bench_fill(&p->work, &p->memory);
    ok = ok && bench_send_all(p->fd, &p->memory, sizeof(p->memory)) && open_contexts(p, &error);
    for (size_t i = 0; ok && i < BENCH_UCX_WAYS; i++)
        ok = tell(p, &p->contexts[i], &error);
    while (ok && bench_receive_all(p->fd, &way, 1))
        ok = way < BENCH_UCX_WAYS && work_for(p, way) && bench_send_all(p->fd, &way, 1);
    return ok ? 0 : 1;
}

// ---- the one that fetches ----

static void
on_failure(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    (void)arg;
    (void)ep;
    (void)status;
}

static bool
connect_way(struct process *p, size_t way, struct bench_error *error)
{
    struct context *c = &p->contexts[way];
    struct packed packed;
    if (!bench_receive_all(p->fd, &packed, sizeof(packed)))
        return bench_fail(error, "UCX doesn't work in the target's process");
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = (const ucp_address_t *)packed.address,
        .err_mode =
            ways[way].detects_failures ? UCP_ERR_HANDLING_MODE_PEER : UCP_ERR_HANDLING_MODE_NONE,
        .err_handler = {.cb = on_failure},
    };
    ucs_status_t status = ucp_ep_create(c->worker, &params, &c->ep);
    if (status != UCS_OK)
        return failed(error, "ucp_ep_create", status);
    status = ucp_ep_rkey_unpack(c->ep, packed.rkey, &c->rkey);
    return status == UCS_OK || failed(error, "ucp_ep_rkey_unpack", status);
}

static bool
flush(struct context *c, struct bench_error *error)
{
    ucp_request_param_t plain = {.op_attr_mask = 0};
    ucs_status_ptr_t request = ucp_ep_flush_nbx(c->ep, &plain);
    ucs_status_t status = UCS_PTR_STATUS(request);
    if (UCS_PTR_IS_PTR(request)) {
        while ((status = ucp_request_check_status(request)) == UCS_INPROGRESS)
            ucp_worker_progress(c->worker);
        ucp_request_free(request);
    }
    return status == UCS_OK || failed(error, "ucp_ep_flush_nbx", status);
}

static bool
get_all(struct process *p, size_t way, struct bench_error *error)
{
    struct context *c = &p->contexts[way];
    ucp_request_param_t plain = {.op_attr_mask = 0};
    for (size_t i = 0; i < p->pieces.count; i++) {
        const struct iovec *to = &p->pieces.list[i];
        ucs_status_ptr_t request =
            ucp_get_nbx(c->ep, to->iov_base, to->iov_len,
                        (uintptr_t)p->target_pieces.list[i].iov_base, c->rkey, &plain);
        if (UCS_PTR_IS_ERR(request))
            return failed(error, "ucp_get_nbx", UCS_PTR_STATUS(request));
        if (request != NULL)
            ucp_request_free(request);
        if ((i + 1) % GETS_PER_FLUSH == 0 && !flush(c, error))
            return false;
    }
    return flush(c, error);
}

static bool
call_target(struct process *p, size_t way, struct bench_error *error)
{
    uint8_t word = (uint8_t)way;
    return bench_send_all(p->fd, &word, 1) || bench_fail(error, "UCX's target has ended");
}

static bool
dismiss_target(struct process *p, struct bench_error *error)
{
    uint8_t word = STOP;
    return (bench_send_all(p->fd, &word, 1) && bench_receive_all(p->fd, &word, 1)) ||
           bench_fail(error, "UCX's target has ended");
}

static bool
get(struct process *p, size_t way, bool with_target, uint64_t *ret_ns, struct bench_error *error)
{
    if (with_target && !call_target(p, way, error))
        return false;
    uint64_t begin = bench_now_ns();
    if (!get_all(p, way, error))
        return false;
    *ret_ns = bench_now_ns() - begin;
    return !with_target || dismiss_target(p, error);
}

static bool
start_target(struct process *p, struct bench_error *error)
{
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
        return bench_fail(error, "socketpair: %s", strerror(errno));
    p->pid = fork();
    if (p->pid < 0)
        return bench_fail(error, "fork: %s", strerror(errno));
    p->fd = fds[p->pid == 0 ? 1 : 0];
    close(fds[p->pid == 0 ? 0 : 1]);
    if (p->pid == 0)
        _exit(target_main(p));
    return true;
}

static bool
open_all(struct process *p, const struct bench_work *work, struct bench_error *error)
{
    uint64_t ns;
    p->work = *work;
    if (!bench_blocks_init(&p->blocks, work, error) || !start_target(p, error) ||
        !map_memory(p, error))
        return false;
    if (!bench_receive_all(p->fd, &p->target_memory, sizeof(p->target_memory)))
        return bench_fail(error, "UCX's target has ended");
    if (!bench_pieces_init(&p->pieces, work, p->blocks.dst, &p->memory, error) ||
        !bench_pieces_init(&p->target_pieces, work, p->blocks.src, &p->target_memory, error))
        return false;
    bench_clear(work, &p->memory);
    if (!open_contexts(p, error))
        return false;
    for (size_t i = 0; i < BENCH_UCX_WAYS; i++) {
        if (!connect_way(p, i, error))
            return false;
    }
    // The first get makes the connection, in which the target has a part.
    for (size_t i = 0; i < BENCH_UCX_WAYS; i++) {
        if (!get(p, i, true, &ns, error))
            return false;
    }
    return true;
}

static bool
cpu(const struct process *p, uint64_t *ret_ns, struct bench_error *error)
{
    struct timespec used;
    clockid_t clock;
    if (clock_getcpuclockid(p->pid, &clock) != 0 || clock_gettime(clock, &used) != 0)
        return bench_fail(error, "UCX's target has ended");
    *ret_ns = bench_cpu_ns() + (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
    return true;
}

static bool
get_and_check(struct process *p, size_t way, struct bench_error *error)
{
    uint64_t ns;
    bench_clear(&p->work, &p->memory);
    return get(p, way, needs_target(way), &ns, error) &&
           bench_verify(&p->work, &p->blocks, &p->memory, error);
}

static bool
obey(struct process *p, const struct bench_order *order, uint64_t *ret_value,
     struct bench_error *error)
{
    size_t way = order->count;
    if (way >= BENCH_UCX_WAYS)
        return bench_fail(error, "UCX has no way %zu", way);
    switch (order->kind) {
    case BENCH_ORDER_OPEN:
        return open_all(p, &order->work, error);
    case BENCH_ORDER_UCX_GET:
        return get(p, way, needs_target(way), ret_value, error);
    case BENCH_ORDER_UCX_CHECK:
        return get_and_check(p, way, error);
    case BENCH_ORDER_CPU:
        return cpu(p, ret_value, error);
    default:
        return bench_fail(error, "an order that UCX's side doesn't know: %u", order->kind);
    }
}

int
main(int argc, char **argv)
{
    static struct process process;
    struct bench_order order;
    bool talking = argc == 2;
    int fd = talking ? atoi(argv[1]) : -1;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (talking && bench_receive_all(fd, &order, sizeof(order))) {
        struct bench_answer answer = {.payload_bytes = 0};
        char version[BENCH_UCX_VERSION_BYTES] = "";
        answer.ok = obey(&process, &order, &answer.value, &answer.error);
        if (answer.ok && order.kind == BENCH_ORDER_OPEN)
            answer.payload_bytes = sizeof(version);
        snprintf(version, sizeof(version), "%s", ucp_get_version_string());
        talking = bench_send_all(fd, &answer, sizeof(answer)) &&
                  bench_send_all(fd, version, answer.payload_bytes);
    }
    if (process.pid > 0) {
        close(process.fd);
        waitpid(process.pid, NULL, 0);
    }
    return 0;
}
