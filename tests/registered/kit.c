#include "registered/kit.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { AROUND_BYTES = 192, AROUND = 0xa5, CACHES_MAX = 16, PAGE_BYTES = 4096 };

const char *transport = "local";
const char *own_ip = "127.0.0.1";
const char *peer_ip = "127.0.0.1";
bool (*kit_obeys)(struct talk *talk, const char *command, const char *words);

void
check_status(llm_status status, llm_status expected, const char *call, const char *file, int line)
{
    char why[512];
    if (status == expected)
        return;
    llm_last_error(why, sizeof(why));
    fail_msg("%s:%d: %s is %s (%s), expected %s", file, line, call, llm_status_name(status), why,
             llm_status_name(expected));
}

// ---- instances ----

static llm_status
try_open(struct end *end, const struct end_setup *setup, uint16_t port)
{
    char address[32];
    char sync_ms[16];
    char liveness_ms[16];
    char dead_ms[16];
    unsigned role = setup->role;
    llm_option options[10] = {
        {LLM_OPTION_DEVICE_ID, "0"},
        {LLM_OPTION_SYNC_CACHE_WAIT_TIME, sync_ms},
        {LLM_OPTION_LIVENESS_TIME, liveness_ms},
        {LLM_OPTION_DEAD_TIME, dead_ms},
        {LLM_OPTION_TRANSPORTS, setup->transports != NULL ? setup->transports : transport},
        {LLM_OPTION_LOG_LEVEL, "off"},
    };
    size_t num_options = 6;
    if (!setup->version_1)
        options[num_options++] = (llm_option){LLM_OPTION_LOCAL_COMM_RES, ""};
    if (setup->checksum)
        options[num_options++] = (llm_option){LLM_OPTION_CHECKSUM, "crc32c"};
    if (setup->copies_alone)
        options[num_options++] = (llm_option){LLM_OPTION_COPY_THREADS, "1"};
    if (setup->listens || setup->listens_later)
        options[num_options++] = (llm_option){LLM_OPTION_LISTEN_IP_INFO, address};
    snprintf(address, sizeof(address), "%s:%u", own_ip, port);
    if (role == 0)
        role = setup->listens ? LLM_ROLE_PROMPT : LLM_ROLE_DECODER;
    snprintf(sync_ms, sizeof(sync_ms), "%u", setup->sync_ms != 0 ? setup->sync_ms : 60000);
    snprintf(liveness_ms, sizeof(liveness_ms), "%u",
             setup->liveness_ms != 0 ? setup->liveness_ms : 10000);
    snprintf(dead_ms, sizeof(dead_ms), "%u", setup->dead_ms != 0 ? setup->dead_ms : 10000);
    *end = (struct end){.id = setup->id};
    llm_status status = llm_create(setup->id, (llm_role)role, &end->dd);
    if (status == LLM_SUCCESS)
        status = llm_initialize(end->dd, options, num_options);
    if (status == LLM_SUCCESS && setup->listens)
        status = llm_get_listen_port(end->dd, 0, &end->port);
    return status;
}

llm_status
end_try_open(struct end *end, const struct end_setup *setup)
{
    llm_status status = try_open(end, setup, setup->port);
    if (status != LLM_FAILED || setup->port == 0)
        return status;
    // Somebody else was given the port meanwhile.
    llm_destroy(end->dd);
    return try_open(end, setup, 0);
}

void
end_open(struct end *end, const struct end_setup *setup)
{
    assert_ok(end_try_open(end, setup));
}

void
end_close(struct end *end)
{
    llm_destroy(end->dd);
    end->dd = NULL;
}

static llm_cluster_info
describe_peer(uint64_t id, llm_ip_info *local, llm_ip_info *remote, uint16_t port)
{
    *local = (llm_ip_info){.ip = own_ip};
    *remote = (llm_ip_info){.ip = peer_ip, .port = port};
    return (llm_cluster_info){
        .struct_size = sizeof(llm_cluster_info),
        .remote_cluster_id = id,
        .local_ip_infos = local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = remote,
        .num_remote_ip_infos = 1,
    };
}

llm_status
end_link(struct end *end, uint64_t as_id, uint16_t port)
{
    llm_ip_info local;
    llm_ip_info remote;
    llm_cluster_info peer = describe_peer(as_id, &local, &remote, port);
    return llm_link_clusters(end->dd, &peer, 1, NULL, NULL, PATIENCE_MS);
}

llm_status
end_unlink(struct end *end, uint64_t id, uint16_t port, bool force)
{
    llm_ip_info local;
    llm_ip_info remote;
    llm_cluster_info peer = describe_peer(id, &local, &remote, port);
    return llm_unlink_clusters(end->dd, &peer, 1, NULL, NULL, PATIENCE_MS, force);
}

unsigned
end_state(const struct end *end, uint64_t id, llm_link_info *info)
{
    llm_link_info own = {.struct_size = sizeof(own)};
    if (llm_get_link_info(end->dd, id, &own) != LLM_SUCCESS)
        return 0;
    if (info != NULL)
        *info = own;
    return own.state;
}

// ---- caches ----

// Where a tensor begins in the arena.
static size_t
place_of(const struct kv *kv, enum layout layout, uint32_t tensor, size_t *ret_step)
{
    size_t tensor_bytes = kv->num_slots * kv->stride;
    if (layout == LAYOUT_PAGES) {
        *ret_step = (tensor_bytes + 2 * PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
        return PAGE_BYTES + tensor * *ret_step;
    }
    // At least AROUND_BYTES before each and behind the last.
    *ret_step = (tensor_bytes + 2 * AROUND_BYTES) / 64 * 64;
    return AROUND_BYTES + tensor * *ret_step + 1 + tensor * 7 % 61;
}

void
kv_map(struct kv *kv, enum layout layout, uint32_t num_tensors, uint64_t num_slots, uint64_t stride)
{
    size_t step;
    *kv = (struct kv){.num_tensors = num_tensors, .num_slots = num_slots, .stride = stride};
    kv->arena_bytes = place_of(kv, layout, num_tensors, &step) + step;
    kv->arena_bytes = (kv->arena_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    kv->arena =
        mmap(NULL, kv->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(kv->arena != MAP_FAILED);
    memset(kv->arena, AROUND, kv->arena_bytes);
    kv->addresses = calloc(num_tensors, sizeof(*kv->addresses));
    assert_non_null(kv->addresses);
    for (uint32_t t = 0; t < num_tensors; t++)
        kv->addresses[t] = (uintptr_t)kv->arena + place_of(kv, layout, t, &step);
    kv_fill(kv, 0);
}

void
kv_register(struct kv *kv, struct end *end)
{
    int64_t shape[] = {(int64_t)kv->num_slots, (int64_t)kv->stride};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_HOST,
        .num_tensors = kv->num_tensors,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = LENGTH(shape),
    };
    assert_ok(llm_register_kv_cache(end->dd, &desc, kv->addresses, kv->num_tensors, &kv->id));
    assert_true(kv->id > 0);
}

void
kv_open(struct kv *kv, struct end *end, uint32_t num_tensors, uint64_t num_slots, uint64_t stride)
{
    kv_map(kv, LAYOUT_ODD, num_tensors, num_slots, stride);
    kv_register(kv, end);
}

void
kv_allocate(struct kv *kv, struct end *end, uint32_t num_tensors, uint64_t num_slots,
            uint64_t stride)
{
    int64_t shape[] = {(int64_t)num_slots, (int64_t)stride};
    llm_cache_desc desc = {
        .struct_size = sizeof(desc),
        .placement = LLM_PLACEMENT_DEVICE,
        .num_tensors = num_tensors,
        .data_type = LLM_DT_UINT8,
        .shape = shape,
        .num_dims = LENGTH(shape),
    };
    *kv = (struct kv){.num_tensors = num_tensors, .num_slots = num_slots, .stride = stride};
    kv->addresses = calloc(num_tensors, sizeof(*kv->addresses));
    assert_non_null(kv->addresses);
    llm_cache cache = {
        .struct_size = sizeof(cache),
        .tensor_addrs = (uintptr_t *)kv->addresses,
        .num_tensor_addrs = num_tensors,
    };
    assert_ok(llm_allocate_cache(end->dd, &desc, &cache));
    kv->id = cache.cache_id;
    kv_fill(kv, 0);
}

void
kv_unmap(struct kv *kv)
{
    if (kv->arena != NULL)
        munmap(kv->arena, kv->arena_bytes);
    kv->arena = NULL;
}

void
kv_free(struct kv *kv)
{
    kv_unmap(kv);
    free(kv->addresses);
    *kv = (struct kv){0};
}

llm_cache
kv_cache(const struct kv *kv)
{
    return (llm_cache){.struct_size = sizeof(llm_cache), .cache_id = kv->id};
}

// ---- bytes ----

static uint64_t
first_word(uint64_t seed, uint32_t tensor)
{
    uint64_t word = seed * UINT64_C(0x9e3779b97f4a7c15) + tensor + 1;
    word = (word ^ word >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    word = (word ^ word >> 27) * UINT64_C(0x94d049bb133111eb);
    return word ^ word >> 31;
}

// Words at any address.
struct __attribute__((packed)) word {
    uint64_t value;
};

// The eight bytes of a tensor from `offset` on, little-endian.
static inline uint64_t
word_at(uint64_t first, uint64_t seed, uint64_t offset)
{
    const uint64_t step = UINT64_C(0xd1342543de82ef95);
    uint64_t word = first + (offset >> 3) * step;
    unsigned shift = 8 * (offset & 7);
    if (seed == 0)
        return 0;
    return shift == 0 ? word : word >> shift | (word + step) << (64 - shift);
}

QUIET void
kv_fill(struct kv *kv, uint64_t seed)
{
    uint64_t num_bytes = kv->num_slots * kv->stride;
    for (uint32_t t = 0; t < kv->num_tensors; t++) {
        volatile uint8_t *bytes = (volatile uint8_t *)(uintptr_t)kv->addresses[t];
        uint64_t first = first_word(seed, t);
        uint64_t i = 0;
        for (; i + 8 <= num_bytes; i += 8)
            ((volatile struct word *)(bytes + i))->value = word_at(first, seed, i);
        for (; i < num_bytes; i++)
            bytes[i] = (uint8_t)word_at(first, seed, i);
    }
}

QUIET bool
kv_slot_holds(const struct kv *kv, uint32_t tensor, uint64_t slot, uint64_t seed,
              uint32_t seed_tensor, uint64_t seed_slot)
{
    const volatile uint8_t *bytes =
        (const volatile uint8_t *)(uintptr_t)kv->addresses[tensor] + slot * kv->stride;
    uint64_t first = first_word(seed, seed_tensor);
    uint64_t from = seed_slot * kv->stride;
    uint64_t i = 0;
    for (; i + 8 <= kv->stride; i += 8) {
        if (((const volatile struct word *)(bytes + i))->value != word_at(first, seed, from + i))
            return false;
    }
    for (; i < kv->stride; i++) {
        if (bytes[i] != (uint8_t)word_at(first, seed, from + i))
            return false;
    }
    return true;
}

QUIET bool
kv_is_intact_around(const struct kv *kv)
{
    for (uint32_t t = 0; kv->arena != NULL && t < kv->num_tensors; t++) {
        const volatile uint8_t *bytes = (const volatile uint8_t *)(uintptr_t)kv->addresses[t];
        uint64_t tensor_bytes = kv->num_slots * kv->stride;
        for (unsigned i = 0; i < AROUND_BYTES / 2; i++) {
            if (bytes[-1 - (int)i] != AROUND || bytes[tensor_bytes + i] != AROUND)
                return false;
        }
    }
    return true;
}

bool
kv_holds(const struct kv *kv, uint64_t seed, uint64_t count, uint64_t shift)
{
    for (uint32_t t = 0; t < kv->num_tensors; t++) {
        for (uint64_t i = 0; i < kv->num_slots; i++) {
            bool moved = i < count;
            uint64_t slot = moved ? (i + shift) % count : i;
            if (!kv_slot_holds(kv, t, slot, moved ? seed : 0, t, i))
                return false;
        }
    }
    return kv_is_intact_around(kv);
}

QUIET uint64_t
kv_checksum(const struct kv *kv)
{
    uint64_t num_bytes = kv->num_slots * kv->stride;
    uint64_t sum = 14695981039346656037u;
    for (uint32_t t = 0; t < kv->num_tensors; t++) {
        const volatile uint8_t *bytes = (const volatile uint8_t *)(uintptr_t)kv->addresses[t];
        uint64_t i = 0;
        for (; i + 8 <= num_bytes; i += 8)
            sum = (sum ^ ((const volatile struct word *)(bytes + i))->value) * 1099511628211u;
        for (; i < num_bytes; i++)
            sum = (sum ^ bytes[i]) * 1099511628211u;
    }
    return sum;
}

// ---- transfers ----

static llm_status
run_slot(const struct job *job, struct end *end, const llm_cache *local, llm_cache_index remote,
         const llm_kv_cache_ext_param *param, uint64_t *ret_id)
{
    uint32_t from = (uint32_t)job->count;
    uint32_t to = (uint32_t)job->shift;
    remote.batch_index = job->push ? to : from;
    if (job->push && ret_id != NULL)
        return llm_start_push_kv_cache(end->dd, local, &remote, from, -1, param, ret_id);
    if (job->push)
        return llm_push_kv_cache(end->dd, local, &remote, from, -1, param);
    if (ret_id != NULL)
        return llm_start_pull_kv_cache(end->dd, &remote, local, to, -1, param, ret_id);
    return llm_pull_kv_cache(end->dd, &remote, local, to, -1, param);
}

static llm_status
run_blocks(const struct job *job, struct end *end, const llm_cache *local,
           const llm_cache_index *remote, const llm_kv_cache_ext_param *param, uint64_t *ret_id)
{
    size_t n = job->count * (job->repeat != 0 ? job->repeat : 1);
    uint64_t *from = calloc(n, sizeof(*from));
    uint64_t *to = calloc(n, sizeof(*to));
    llm_status status;
    for (size_t i = 0; i < n; i++) {
        from[i] = i % job->count;
        to[i] = (i + job->shift) % job->count;
    }
    if (job->push && ret_id != NULL)
        status = llm_start_push_kv_blocks(end->dd, local, remote, from, n, to, n, param, ret_id);
    else if (job->push)
        status = llm_push_kv_blocks(end->dd, local, remote, from, n, to, n, param);
    else if (ret_id != NULL)
        status = llm_start_pull_kv_blocks(end->dd, remote, local, from, n, to, n, param, ret_id);
    else
        status = llm_pull_kv_blocks(end->dd, remote, local, from, n, to, n, param);
    free(from);
    free(to);
    return status;
}

static llm_status
run(const struct job *job, struct end *end, const struct kv *local, uint64_t *ret_id)
{
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    llm_cache cache = kv_cache(local);
    llm_cache_index remote = {
        .struct_size = sizeof(remote),
        .cluster_id = job->peer,
        .cache_id = job->remote,
    };
    // A push counts in layers.
    if (local->num_tensors % 2 != 0)
        param.tensor_num_per_layer = 1;
    param.timeout_ms = job->timeout_ms;
    param.interrupted = job->interrupted;
    param.interrupted_arg = job->interrupted_arg;
    param.notification = job->note;
    param.notification_bytes = job->note_bytes;
    return job->slot ? run_slot(job, end, &cache, remote, &param, ret_id)
                     : run_blocks(job, end, &cache, &remote, &param, ret_id);
}

llm_status
job_run(const struct job *job, struct end *end, const struct kv *local)
{
    return run(job, end, local, NULL);
}

llm_status
job_start(const struct job *job, struct end *end, const struct kv *local, uint64_t *ret_id)
{
    return run(job, end, local, ret_id);
}

void
await_note(struct end *end, uint64_t from, const void *bytes, size_t num_bytes)
{
    uint8_t got[LLM_NOTIFICATION_BYTES_MAX];
    uint64_t sender = 0;
    size_t got_bytes = 0;
    llm_status status = LLM_NO_NOTIFICATION;
    AWAIT((status = llm_poll_notification(end->dd, &sender, got, sizeof(got), &got_bytes)) !=
          LLM_NO_NOTIFICATION);
    assert_ok(status);
    assert_int_equal(sender, from);
    assert_int_equal(got_bytes, num_bytes);
    assert_memory_equal(got, bytes, num_bytes);
}

// ---- in another process: the commands ----

struct server {
    struct end end;
    struct kv caches[CACHES_MAX];
    char transports[32];
};

// process_vm_readv answers with EPERM from now on, in this thread and those that it starts.
static bool
forbid_reading(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = LENGTH(filter), .filter = filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// Nobody but the superuser may read this process.
static bool
hide(bool dumpable)
{
    const uid_t nobody = 65534;
    if (geteuid() == 0 && setresuid(nobody, nobody, nobody) != 0)
        return false;
    return prctl(PR_SET_DUMPABLE, dumpable ? 1 : 0, 0, 0, 0) == 0;
}

static void
serve_open(struct server *server, struct talk *talk, const char *words)
{
    unsigned version_1;
    unsigned listens;
    unsigned checksum;
    struct end_setup setup = {.transports = server->transports};
    assert_int_equal(sscanf(words, "%" SCNu64 " %u %31s %u %u %u %u %u %" SCNu16 " %u", &setup.id,
                            &setup.role, server->transports, &version_1, &listens, &setup.sync_ms,
                            &setup.liveness_ms, &setup.dead_ms, &setup.port, &checksum),
                     10);
    setup.version_1 = version_1 != 0;
    setup.listens = listens != 0;
    setup.checksum = checksum != 0;
    assert_ok(end_try_open(&server->end, &setup));
    talk_say(talk, "%u", server->end.port);
}

static void
serve_cache(struct server *server, struct talk *talk, const char *command, const char *words)
{
    unsigned index = 0;
    uint64_t a = 0;
    uint64_t b = 0;
    uint64_t c = 0;
    sscanf(words, "%u %" SCNu64 " %" SCNu64 " %" SCNu64, &index, &a, &b, &c);
    assert_true(index < CACHES_MAX);
    struct kv *kv = &server->caches[index];
    if (strcmp(command, "register") == 0) {
        kv_free(kv);
        kv_open(kv, &server->end, (uint32_t)a, b, c);
        talk_say(talk, "%" PRId64, kv->id);
    } else if (strcmp(command, "allocate") == 0) {
        kv_free(kv);
        kv_allocate(kv, &server->end, (uint32_t)a, b, c);
        talk_say(talk, "%" PRId64, kv->id);
    } else if (strcmp(command, "fill") == 0) {
        kv_fill(kv, a);
        talk_say(talk, "0");
    } else if (strcmp(command, "holds") == 0) {
        talk_say(talk, "%d", kv_holds(kv, a, b, c));
    } else if (strcmp(command, "checksum") == 0) {
        talk_say(talk, "%" PRIu64, kv_checksum(kv));
    } else if (strcmp(command, "unregister") == 0) {
        talk_say(talk, "%u", llm_unregister_kv_cache(server->end.dd, kv->id));
    } else {
        assert_string_equal(command, "unmap");
        kv_unmap(kv);
        talk_say(talk, "0");
    }
}

static void
serve_link(struct server *server, struct talk *talk, const char *command, const char *words)
{
    uint64_t id = 0;
    unsigned port = 0;
    sscanf(words, "%" SCNu64 " %u", &id, &port);
    if (strcmp(command, "link") == 0)
        talk_say(talk, "%u", end_link(&server->end, id, (uint16_t)port));
    else
        talk_say(talk, "%u", end_state(&server->end, id, NULL));
}

static llm_status
start_and_wait(const struct job *job, struct end *end, const struct kv *local)
{
    uint64_t id;
    llm_status status = job_start(job, end, local, &id);
    return status == LLM_SUCCESS ? llm_transfer_wait(end->dd, id, PATIENCE_MS) : status;
}

static void
serve_run(struct server *server, struct talk *talk, bool starts, const char *words)
{
    unsigned index;
    unsigned push;
    unsigned slot;
    struct job job = {0};
    assert_int_equal(sscanf(words, "%u %u %u %" SCNu64 " %" SCNd64 " %" SCNu64 " %" SCNu64 " %u %u",
                            &index, &push, &slot, &job.peer, &job.remote, &job.count, &job.shift,
                            &job.timeout_ms, &job.repeat),
                     9);
    job.push = push != 0;
    job.slot = slot != 0;
    llm_status (*run_it)(const struct job *, struct end *, const struct kv *) =
        starts ? start_and_wait : job_run;
    talk_say(talk, "%u", run_it(&job, &server->end, &server->caches[index]));
}

// The next notification's length; 0: none.  It must hold its number in the first byte of each.
static void
serve_note(struct server *server, struct talk *talk)
{
    uint8_t bytes[LLM_NOTIFICATION_BYTES_MAX];
    size_t num_bytes = 0;
    llm_status status =
        llm_poll_notification(server->end.dd, NULL, bytes, sizeof(bytes), &num_bytes);
    talk_say(talk, "%zu", status == LLM_SUCCESS ? num_bytes : 0);
}

static void
serve(struct server *server, struct talk *talk, const char *command, const char *words)
{
    if (kit_obeys != NULL && kit_obeys(talk, command, words))
        return;
    if (strcmp(command, "open") == 0)
        serve_open(server, talk, words);
    else if (strcmp(command, "forbid") == 0)
        talk_say(talk, "%d", forbid_reading());
    else if (strcmp(command, "hide") == 0)
        talk_say(talk, "%d", hide(words[0] == '1'));
    else if (strcmp(command, "link") == 0 || strcmp(command, "state") == 0)
        serve_link(server, talk, command, words);
    else if (strcmp(command, "run") == 0 || strcmp(command, "start") == 0)
        serve_run(server, talk, command[0] == 's', words);
    else if (strcmp(command, "note") == 0)
        serve_note(server, talk);
    else
        serve_cache(server, talk, command, words);
}

int
kit_serve(struct talk *talk)
{
    char line[LINE_BYTES];
    char command[32];
    int consumed;
    struct server server = {0};
    while (talk_hear(talk, line, -1)) {
        consumed = 0;
        if (sscanf(line, "%31s %n", command, &consumed) != 1)
            return 1;
        serve(&server, talk, command, line + consumed);
    }
    end_close(&server.end);
    for (size_t i = 0; i < CACHES_MAX; i++)
        kv_free(&server.caches[i]);
    return 0;
}

// ---- in the test: the other end of the commands ----

uint64_t
other_ask(struct other *other, const char *format, ...)
{
    char line[LINE_BYTES];
    char answer[LINE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    process_ask(&other->process, answer, "%s", line);
    return strtoull(answer, NULL, 10);
}

void
other_start(struct other *other)
{
    *other = (struct other){0};
    process_start(&other->process, "kit");
}

void
other_open(struct other *other, const struct end_setup *setup)
{
    if (other->process.pid == 0)
        other_start(other);
    other->id = setup->id;
    other->port = (uint16_t)other_ask(
        other, "open %" PRIu64 " %u %s %d %d %u %u %u %u %d", setup->id, setup->role,
        setup->transports != NULL ? setup->transports : transport, setup->version_1, setup->listens,
        setup->sync_ms, setup->liveness_ms, setup->dead_ms, setup->port, setup->checksum);
}

int64_t
other_cache(struct other *other, unsigned index, bool registered, uint32_t num_tensors,
            uint64_t num_slots, uint64_t stride)
{
    return (int64_t)other_ask(other, "%s %u %" PRIu32 " %" PRIu64 " %" PRIu64,
                              registered ? "register" : "allocate", index, num_tensors, num_slots,
                              stride);
}

void
other_fill(struct other *other, unsigned index, uint64_t seed)
{
    other_ask(other, "fill %u %" PRIu64, index, seed);
}

bool
other_holds(struct other *other, unsigned index, uint64_t seed, uint64_t count, uint64_t shift)
{
    return other_ask(other, "holds %u %" PRIu64 " %" PRIu64 " %" PRIu64, index, seed, count,
                     shift) == 1;
}

llm_status
other_link(struct other *other, uint64_t as_id, uint16_t port)
{
    return (llm_status)other_ask(other, "link %" PRIu64 " %u", as_id, port);
}

void
other_begin(struct other *other, const struct job *job, unsigned index)
{
    talk_say(&other->process.talk,
             "run %u %d %d %" PRIu64 " %" PRId64 " %" PRIu64 " %" PRIu64 " %u %u", index, job->push,
             job->slot, job->peer, job->remote, job->count, job->shift, job->timeout_ms,
             job->repeat);
}

llm_status
other_end(struct other *other)
{
    char answer[LINE_BYTES];
    if (!talk_hear(&other->process.talk, answer, PATIENCE_MS))
        fail_msg("the other process is gone");
    return (llm_status)strtoull(answer, NULL, 10);
}

llm_status
other_run(struct other *other, const struct job *job, unsigned index)
{
    other_begin(other, job, index);
    return other_end(other);
}

// ---- programs ----

bool
is_transport(const char *name)
{
    return strcmp(transport, name) == 0;
}

int
kit_tear_down(void **state)
{
    (void)state;
    process_kill_all();
    return 0;
}

int
kit_main(int argc, char **argv, const struct CMUnitTest *tests, size_t num_tests)
{
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return kit_serve(&talk);
    if (argc > 1)
        transport = argv[1];
    if (argc > 2)
        cmocka_set_test_filter(argv[2]);
    return _cmocka_run_group_tests(transport, tests, num_tests, NULL, NULL);
}
