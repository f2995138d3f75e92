#include "suite.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct suite suite = {.transport = "tcp", .num_devices = 1, .host = "127.0.0.1", .scale = 100};

llm_ip_info loopback[DEVICES_MAX];

// ---- the program ----

static void
swallow(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    (void)level;
    (void)line;
}

static void
read_arguments(int argc, char **argv)
{
    int position = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            suite.seed = strtoull(argv[++i], NULL, 0);
        else if (position++ == 0)
            suite.transport = argv[i];
        else
            suite.num_devices = strtoul(argv[i], NULL, 10);
    }
}

// -1 where there is no IPv6, if that is what is asked for.
static int
bind_loopback(uint16_t *ret_port)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool is_v6 = strchr(suite.host, ':') != NULL;
    struct sockaddr *name = is_v6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
    socklen_t bytes = is_v6 ? sizeof(v6) : sizeof(v4);
    int fd = socket(name->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, name, bytes) != 0 || getsockname(fd, name, &bytes) != 0) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    *ret_port = ntohs(is_v6 ? v6.sin6_port : v4.sin_port);
    return fd;
}

// False where there is no IPv6.
static bool
choose_host(void)
{
    const char *host = getenv("LLM_TEST_HOST");
    if (host != NULL)
        suite.host = host;
    for (size_t i = 0; i < DEVICES_MAX; i++)
        loopback[i].ip = suite.host;
    int fd = strchr(suite.host, ':') != NULL ? bind_loopback(&(uint16_t){0}) : 0;
    if (fd > 0)
        close(fd);
    return fd >= 0;
}

int
suite_main(int argc, char **argv, const char *name, const struct CMUnitTest *tests,
           size_t num_tests)
{
    char title[128];
    const char *scale = getenv("LLM_TEST_SCALE");
    suite.seed = now_ms() ^ (uint64_t)getpid() << 32;
#ifdef CONFORMANCE_SCALE
    suite.scale = CONFORMANCE_SCALE;
#endif
    if (scale != NULL)
        suite.scale = (unsigned)strtoul(scale, NULL, 10);
    read_arguments(argc, argv);
    if (!choose_host()) {
        printf("skipped: there is no IPv6 here\n");
        return 77;
    }
    if (suite.num_devices < 1 || suite.num_devices > DEVICES_MAX) {
        fprintf(stderr, "usage: %s [--seed N] [local|shm|tcp [1..%d]]\n", argv[0], DEVICES_MAX);
        return 2;
    }
    // Most calls here fail on purpose.
    if (getenv("LLM_DATADIST_LOG_LEVEL") == NULL)
        llm_set_log_sink(swallow, NULL);
    snprintf(title, sizeof(title), "%s over %s on %zu device(s)", name, suite.transport,
             suite.num_devices);
    return _cmocka_run_group_tests(title, tests, num_tests, NULL, NULL);
}

unsigned
rounds(unsigned count)
{
    unsigned scaled = count * suite.scale / 100;
    return scaled > 0 ? scaled : 1;
}

uint64_t
now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

// ---- statuses ----

void
check_status(llm_status actual, llm_status expected, const char *says, const char *file, int line)
{
    char why[1024] = "";
    if (actual != LLM_SUCCESS)
        llm_last_error(why, sizeof(why));
    if (actual != expected) {
        print_error("%s: expected %s: %s\n", llm_status_name(actual), llm_status_name(expected),
                    why);
        _fail(file, line);
    }
    if (says != NULL && strstr(why, says) == NULL) {
        print_error("%s: \"%s\" doesn't say \"%s\"\n", llm_status_name(actual), why, says);
        _fail(file, line);
    }
}

// ---- instances ----

static const char *
join_items(char *text, size_t size, const char *item, size_t count)
{
    text[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(text);
        snprintf(text + length, size - length, "%s%s", i > 0 ? ";" : "", item);
    }
    return text;
}

void
open_party_with(struct party *party, uint64_t id, llm_role role,
                const struct party_options *options)
{
    char ids[64];
    char address[64];
    char addresses[256];
    size_t num_devices = options->num_devices > 0 ? options->num_devices : suite.num_devices;
    const char *transports = options->transports != NULL ? options->transports : suite.transport;
    const char *sync_ms = options->sync_ms != NULL ? options->sync_ms : "20000";
    ids[0] = '\0';
    for (size_t i = 0; i < num_devices; i++)
        snprintf(ids + strlen(ids), sizeof(ids) - strlen(ids), "%s%zu", i > 0 ? ";" : "", i);
    snprintf(address, sizeof(address), "%s:0", suite.host);
    join_items(addresses, sizeof(addresses), address, num_devices);
    // A machine that is busy with other tests falls silent.
    const char *liveness_ms = options->liveness_ms != NULL ? options->liveness_ms : "20000";
    llm_option list[] = {
        {LLM_OPTION_DEVICE_ID, ids},
        {LLM_OPTION_LISTEN_IP_INFO, options->listen != NULL ? options->listen : addresses},
        {LLM_OPTION_TRANSPORTS, transports},
        {LLM_OPTION_SYNC_CACHE_WAIT_TIME, sync_ms},
        {LLM_OPTION_ENABLE_SET_ROLE, options->set_role ? "1" : "0"},
        {LLM_OPTION_BUF_POOL_CFG, "{\"buf_pool_size\":67108864}"},
        {LLM_OPTION_LIVENESS_TIME, liveness_ms},
    };
    *party = (struct party){.id = id, .num_devices = num_devices};
    assert_ok(llm_create(id, role, &party->dd));
    assert_ok(llm_initialize(party->dd, list, COUNT_OF(list)));
    if (role == LLM_ROLE_PROMPT)
        read_ports(party);
}

void
open_party(struct party *party, uint64_t id, llm_role role)
{
    struct party_options options = {0};
    open_party_with(party, id, role, &options);
}

void
close_party(struct party *party)
{
    llm_destroy(party->dd);
    party->dd = NULL;
}

void
read_ports(struct party *party)
{
    for (size_t i = 0; i < party->num_devices; i++) {
        party->address[i].ip = suite.host;
        assert_ok(llm_get_listen_port(party->dd, i, &party->address[i].port));
    }
}

llm_cluster_info
cluster_at(uint64_t id, const llm_ip_info *address, size_t num_devices)
{
    return (llm_cluster_info){
        .struct_size = sizeof(llm_cluster_info),
        .remote_cluster_id = id,
        .local_ip_infos = loopback,
        .num_local_ip_infos = num_devices,
        .remote_ip_infos = address,
        .num_remote_ip_infos = num_devices,
    };
}

llm_cluster_info
cluster_of(const struct party *prompt)
{
    return cluster_at(prompt->id, prompt->address, prompt->num_devices);
}

llm_cluster_info
cluster_back(const struct party *decoder)
{
    return cluster_at(decoder->id, loopback, decoder->num_devices);
}

llm_status
link_one(const struct party *decoder, const llm_cluster_info *cluster, llm_status *ret)
{
    return llm_link_clusters(decoder->dd, cluster, 1, ret, NULL, LINK_TIMEOUT_MS);
}

llm_status
unlink_one(const struct party *party, const llm_cluster_info *cluster, bool force, llm_status *ret)
{
    return llm_unlink_clusters(party->dd, cluster, 1, ret, NULL, LINK_TIMEOUT_MS, force);
}

void
link_parties(const struct party *decoder, const struct party *prompt)
{
    llm_cluster_info cluster = cluster_of(prompt);
    llm_link_info info = {.struct_size = sizeof(info)};
    assert_ok(link_one(decoder, &cluster, NULL));
    assert_ok(llm_get_link_info(decoder->dd, prompt->id, &info));
    assert_string_equal(info.transport, suite.transport);
    assert_int_equal(info.num_devices, prompt->num_devices);
}

void
unlink_parties(const struct party *decoder, const struct party *prompt)
{
    llm_cluster_info cluster = cluster_of(prompt);
    assert_ok(unlink_one(decoder, &cluster, false, NULL));
}

bool
is_linked(const struct party *party, uint64_t cluster_id)
{
    llm_link_info info = {.struct_size = sizeof(info)};
    return llm_get_link_info(party->dd, cluster_id, &info) == LLM_SUCCESS &&
           info.state == LLM_LINK_READY;
}

size_t
num_links(const struct party *party)
{
    size_t count = 0;
    assert_ok(llm_list_links(party->dd, NULL, 0, &count));
    return count;
}

int
open_silent_listener(uint16_t *ret_port)
{
    int fd = bind_loopback(ret_port);
    assert_true(fd >= 0);
    assert_int_equal(listen(fd, 64), 0);
    return fd;
}

uint16_t
closed_port(void)
{
    uint16_t port;
    close(bind_loopback(&port));
    return port;
}

// ---- caches ----

static size_t
num_addresses(const struct kv *kv)
{
    return kv->desc.num_tensors * kv->num_devices;
}

static void
describe(struct kv *kv, llm_placement placement, size_t num_devices, uint32_t num_tensors,
         int32_t data_type, int64_t num_slots, int64_t slot_elements)
{
    size_t bits = llm_data_type_bits(data_type);
    memset(kv, 0, sizeof(*kv));
    kv->shape[0] = num_slots;
    kv->shape[1] = slot_elements;
    kv->desc = (llm_cache_desc){
        .struct_size = sizeof(kv->desc),
        .placement = placement,
        .num_tensors = num_tensors,
        .data_type = data_type,
        .shape = kv->shape,
        .num_dims = 2,
    };
    kv->num_devices = num_devices;
    kv->tensor_bytes = ((size_t)num_slots * (size_t)slot_elements * bits + 7) / 8;
    kv->stride = kv->tensor_bytes / (size_t)num_slots;
    kv->addresses = calloc(num_addresses(kv) + 1, sizeof(*kv->addresses));
    kv->expected = calloc(num_addresses(kv) + 1, kv->tensor_bytes);
    assert_non_null(kv->addresses);
    assert_non_null(kv->expected);
    kv->cache = (llm_cache){
        .struct_size = sizeof(kv->cache),
        .cache_id = -1,
        .desc = &kv->desc,
        .tensor_addrs = kv->addresses,
        .num_tensor_addrs = num_addresses(kv),
    };
}

void
open_kv(struct kv *kv, const struct party *party, uint32_t num_tensors, int32_t data_type,
        int64_t num_slots, int64_t slot_elements)
{
    describe(kv, LLM_PLACEMENT_DEVICE, party->num_devices, num_tensors, data_type, num_slots,
             slot_elements);
    assert_ok(llm_allocate_cache(party->dd, &kv->desc, &kv->cache));
    fill_kv(kv, (uint64_t)kv->cache.cache_id * 1000 + party->id);
}

void
open_bytes(struct kv *kv, const struct party *party, uint32_t num_tensors, int64_t num_slots,
           int64_t stride)
{
    open_kv(kv, party, num_tensors, LLM_DT_INT8, num_slots, stride);
}

void
make_bytes(struct kv *kv, llm_placement placement, size_t num_devices, uint32_t num_tensors,
           int64_t num_slots, int64_t stride)
{
    describe(kv, placement, num_devices, num_tensors, LLM_DT_INT8, num_slots, stride);
    kv->by_hand = true;
    for (size_t i = 0; i < num_addresses(kv); i++) {
        kv->addresses[i] = (uintptr_t)malloc(kv->tensor_bytes);
        assert_true(kv->addresses[i] != 0);
    }
    fill_kv(kv, (uint64_t)(uintptr_t)kv);
}

void
forget_kv(struct kv *kv)
{
    for (size_t i = 0; kv->by_hand && i < num_addresses(kv); i++)
        free((void *)kv->addresses[i]);
    free(kv->addresses);
    free(kv->expected);
    memset(kv, 0, sizeof(*kv));
}

// A peer's transfer has read what was there before; that a socket has told so the thread sanitizer
// can't see.
__attribute__((no_sanitize("thread"))) static void
write_quietly(uintptr_t to, const uint8_t *from, size_t bytes)
{
    volatile uint8_t *at = (volatile uint8_t *)to;
    for (size_t i = 0; i < bytes; i++)
        at[i] = from[i];
}

void
fill_kv(struct kv *kv, uint64_t seed)
{
    struct dice dice = {seed};
    for (size_t i = 0; i < num_addresses(kv); i++) {
        uint8_t *bytes = kv->expected + i * kv->tensor_bytes;
        size_t k = 0;
        for (; k + 8 <= kv->tensor_bytes; k += 8) {
            uint64_t word = roll(&dice);
            memcpy(bytes + k, &word, 8);
        }
        for (; k < kv->tensor_bytes; k++)
            bytes[k] = (uint8_t)roll(&dice);
        write_quietly(kv->addresses[i], bytes, kv->tensor_bytes);
    }
}

void
fill_kv_with(struct kv *kv, uint8_t byte)
{
    for (size_t i = 0; i < num_addresses(kv); i++) {
        memset(kv->expected + i * kv->tensor_bytes, byte, kv->tensor_bytes);
        write_quietly(kv->addresses[i], kv->expected + i * kv->tensor_bytes, kv->tensor_bytes);
    }
}

void
expect_copy(struct kv *dst, uint32_t dst_tensor, size_t dst_offset, const struct kv *src,
            uint32_t src_tensor, size_t src_offset, size_t bytes)
{
    assert_true(dst_tensor < dst->desc.num_tensors && src_tensor < src->desc.num_tensors);
    assert_true(dst_offset + bytes <= dst->tensor_bytes);
    assert_true(src_offset + bytes <= src->tensor_bytes);
    for (size_t d = 0; d < dst->num_devices; d++) {
        size_t to = d * dst->desc.num_tensors + dst_tensor;
        size_t from = d * src->desc.num_tensors + src_tensor;
        memmove(dst->expected + to * dst->tensor_bytes + dst_offset,
                src->expected + from * src->tensor_bytes + src_offset, bytes);
    }
}

void
expect_slot(struct kv *dst, uint32_t dst_tensor, size_t dst_slot, const struct kv *src,
            uint32_t src_tensor, size_t src_slot, size_t bytes)
{
    expect_copy(dst, dst_tensor, dst_slot * dst->stride, src, src_tensor, src_slot * src->stride,
                bytes);
}

void
check_kv(const struct kv *kv, const char *file, int line)
{
    for (size_t i = 0; i < num_addresses(kv); i++) {
        const uint8_t *actual = (const uint8_t *)kv->addresses[i];
        const uint8_t *expected = kv->expected + i * kv->tensor_bytes;
        if (memcmp(actual, expected, kv->tensor_bytes) == 0)
            continue;
        size_t at = 0;
        while (actual[at] == expected[at])
            at++;
        print_error("cache %lld, tensor address %zu, slot %zu, byte %zu: %02x, expected %02x\n",
                    (long long)kv->cache.cache_id, i, at / kv->stride, at % kv->stride, actual[at],
                    expected[at]);
        _fail(file, line);
    }
}

llm_cache_index
index_of(const struct party *party, const struct kv *kv, uint32_t batch_index)
{
    return (llm_cache_index){
        .struct_size = sizeof(llm_cache_index),
        .cluster_id = party->id,
        .cache_id = kv->cache.cache_id,
        .batch_index = batch_index,
    };
}

llm_kv_cache_ext_param
layers(int32_t src_first, int32_t src_last, int32_t dst_first, int32_t dst_last,
       uint32_t tensors_per_layer)
{
    return (llm_kv_cache_ext_param){
        .struct_size = sizeof(llm_kv_cache_ext_param),
        .src_layer_range = {src_first, src_last},
        .dst_layer_range = {dst_first, dst_last},
        .tensor_num_per_layer = tensors_per_layer,
    };
}

// ---- the order of checks ----

static void
prove_pair(const struct proof *proof, const struct breach *breach, const struct breach *later)
{
    char why[1024];
    proof->reset(proof->call);
    if (later != NULL)
        later->commit(proof->call);
    breach->commit(proof->call);
    llm_status status = proof->run(proof->call);
    llm_last_error(why, sizeof(why));
    if (status != breach->status || strstr(why, breach->says) == NULL) {
        print_error("check %u (\"%s\")%s%u: %s, expected %s: %s\n", breach->check, breach->says,
                    later != NULL ? " together with check " : " alone, ",
                    later != NULL ? later->check : 0, llm_status_name(status),
                    llm_status_name(breach->status), why);
        fail();
    }
    if (proof->unharmed != NULL)
        proof->unharmed(proof->call);
}

void
prove_check(const struct proof *proof, unsigned check)
{
    bool found = false;
    for (size_t i = 0; i < proof->num_breaches; i++) {
        const struct breach *breach = &proof->breaches[i];
        if (breach->check != check)
            continue;
        found = true;
        prove_pair(proof, breach, NULL);
        for (size_t j = i + 1; j < proof->num_breaches; j++) {
            const struct breach *later = &proof->breaches[j];
            if ((breach->conflicts & later->conflicts) == 0)
                prove_pair(proof, breach, later);
        }
    }
    assert_true(found);
    // The same arguments without the breach are fine, so it was the breach.
    proof->reset(proof->call);
    assert_ok(proof->run(proof->call));
}

// ---- randomness ----

uint64_t
roll(struct dice *dice)
{
    // splitmix64
    uint64_t z = dice->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

uint64_t
roll_below(struct dice *dice, uint64_t end)
{
    return roll(dice) % end;
}

bool
roll_chance(struct dice *dice, unsigned percent)
{
    return roll_below(dice, 100) < percent;
}
