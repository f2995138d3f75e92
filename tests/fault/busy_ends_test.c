// Two honest ends that start thousands of transfers at each other at once: all of them end well, also
// where the system's buffers are small.
#include <sys/socket.h>

#include "registered/kit.h"

enum { HERE = 1, THERE = 2, TENSORS = 2, SLOTS = 256, STRIDE = 16 };
enum { BLOCKS = 100, TRANSFERS = SCALED(20000, 2500), TIME_MS = 3 * PATIENCE_MS };

// Buffers of tuned hosts; the linker leads the library here (--wrap).  0: the system's own.
static int buffer_bytes;

int __real_socket(int domain, int type, int protocol);
int __wrap_socket(int domain, int type, int protocol);

int
__wrap_socket(int domain, int type, int protocol)
{
    int fd = __real_socket(domain, type, protocol);
    if (fd >= 0 && domain == AF_INET && buffer_bytes != 0) {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof(buffer_bytes));
    }
    return fd;
}

struct side {
    struct end end;
    struct kv source;
    struct kv target;
    uint64_t *ids; // of started transfers
};

static struct side side;

static void
side_open(uint64_t id, const char *transports, bool listens)
{
    struct end_setup setup = {.id = id, .transports = transports, .listens = listens};
    side = (struct side){.ids = calloc(TRANSFERS, sizeof(uint64_t))};
    assert_non_null(side.ids);
    end_open(&side.end, &setup);
    kv_allocate(&side.source, &side.end, TENSORS, SLOTS, STRIDE);
    kv_allocate(&side.target, &side.end, TENSORS, SLOTS, STRIDE);
    kv_fill(&side.source, id);
}

static void
side_close(void)
{
    end_close(&side.end);
    kv_free(&side.source);
    kv_free(&side.target);
    free(side.ids);
}

// Pulls fill the own target from the peer's source, pushes the peer's target from the own source.
static llm_status
start(bool push, uint64_t peer, int64_t remote, uint64_t *ret_id)
{
    uint64_t from[BLOCKS];
    uint64_t to[BLOCKS];
    llm_cache cache = kv_cache(push ? &side.source : &side.target);
    llm_cache_index index = {.struct_size = sizeof(index), .cluster_id = peer, .cache_id = remote};
    llm_kv_cache_ext_param param = {
        .struct_size = sizeof(param),
        .src_layer_range = {-1, -1},
        .dst_layer_range = {-1, -1},
        .tensor_num_per_layer = TENSORS,
        .timeout_ms = TIME_MS,
    };
    // No two that follow each other are neighbours.
    for (uint64_t i = 0; i < BLOCKS; i++)
        from[i] = to[i] = i * 2;
    return push ? llm_start_push_kv_blocks(side.end.dd, &cache, &index, from, BLOCKS, to, BLOCKS,
                                           &param, ret_id)
                : llm_start_pull_kv_blocks(side.end.dd, &index, &cache, from, BLOCKS, to, BLOCKS,
                                           &param, ret_id);
}

// How many of so many, all started before the first is waited for, end well.
static unsigned
run_all(bool push, uint64_t peer, int64_t remote)
{
    unsigned num_good = 0;
    for (unsigned i = 0; i < TRANSFERS; i++)
        assert_ok(start(push, peer, remote, &side.ids[i]));
    for (unsigned i = 0; i < TRANSFERS; i++) {
        llm_status status = llm_transfer_wait(side.end.dd, side.ids[i], 2 * TIME_MS);
        if (status != LLM_SUCCESS && num_good == i)
            printf("transfer %u: %s\n", i, llm_status_name(status));
        num_good += status == LLM_SUCCESS;
        assert_ok(llm_transfer_release(side.end.dd, side.ids[i]));
    }
    return num_good;
}

static bool
holds(const struct kv *kv, uint64_t seed)
{
    for (uint32_t t = 0; t < TENSORS; t++) {
        for (uint64_t i = 0; i < BLOCKS; i++) {
            if (!kv_slot_holds(kv, t, i * 2, seed, t, i * 2))
                return false;
        }
    }
    return true;
}

static bool
obey(struct talk *talk, const char *command, const char *words)
{
    char transports[16];
    unsigned a = 0;
    unsigned b = 0;
    if (strcmp(command, "side") == 0) {
        assert_int_equal(sscanf(words, "%15s %u %d", transports, &a, &buffer_bytes), 3);
        side_open(THERE, transports, true);
        talk_say(talk, "%u", side.end.port);
    } else if (strcmp(command, "caches") == 0) {
        talk_say(talk, "%u",
                 (unsigned)side.source.id << 16 | (unsigned)side.target.id); // small numbers
    } else if (strcmp(command, "flood") == 0) {
        assert_int_equal(sscanf(words, "%u %u", &a, &b), 2);
        talk_say(talk, "%u", run_all(a != 0, HERE, b));
    } else if (strcmp(command, "look") == 0) {
        talk_say(talk, "%d", holds(&side.target, HERE));
    } else {
        assert_string_equal(command, "bye");
        side_close();
        talk_say(talk, "0");
    }
    return true;
}

static void
flood_each_other(const char *transports, bool push, int bytes)
{
    struct other other = {0};
    llm_link_info info = {.struct_size = sizeof(info)};
    char answer[LINE_BYTES];
    other_start(&other);
    buffer_bytes = bytes;
    uint16_t port = (uint16_t)other_ask(&other, "side %s 0 %d", transports, bytes);
    unsigned caches = (unsigned)other_ask(&other, "caches");
    side_open(HERE, transports, false);
    assert_ok(end_link(&side.end, THERE, port));
    talk_say(&other.process.talk, "flood %d %u", push,
             (unsigned)(push ? side.target.id : side.source.id));
    unsigned here = run_all(push, THERE, push ? caches & 0xffff : caches >> 16);
    if (!talk_hear(&other.process.talk, answer, 2 * TIME_MS))
        fail_msg("the other process is gone");
    unsigned there = (unsigned)strtoul(answer, NULL, 10);
    if (here != TRANSFERS || there != TRANSFERS)
        fail_msg("of %d transfers each way %u and %u ended well", TRANSFERS, here, there);
    assert_true(holds(&side.target, THERE));
    assert_int_equal(other_ask(&other, "look"), 1);
    assert_int_equal(end_state(&side.end, THERE, &info), LLM_LINK_READY);
    side_close();
    other_ask(&other, "bye");
    assert_true(process_join(&other.process));
}

static void
test_pulls_over_tcp(void **state)
{
    (void)state;
    flood_each_other("tcp", false, 0);
}

static void
test_pushes_over_tcp(void **state)
{
    (void)state;
    flood_each_other("tcp", true, 0);
}

static void
test_pulls_over_tcp_with_small_buffers(void **state)
{
    (void)state;
    flood_each_other("tcp", false, 16 << 10);
}

static void
test_pushes_over_tcp_with_small_buffers(void **state)
{
    (void)state;
    flood_each_other("tcp", true, 16 << 10);
}

static void
test_pulls_over_shm(void **state)
{
    (void)state;
    flood_each_other("shm", false, 16 << 10);
}

static void
test_pushes_over_shm(void **state)
{
    (void)state;
    flood_each_other("shm", true, 16 << 10);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        KIT_TEST(test_pulls_over_tcp),
        KIT_TEST(test_pushes_over_tcp),
        KIT_TEST(test_pulls_over_tcp_with_small_buffers),
        KIT_TEST(test_pushes_over_tcp_with_small_buffers),
        KIT_TEST(test_pulls_over_shm),
        KIT_TEST(test_pushes_over_shm),
    };
    kit_obeys = obey;
    return kit_main(argc, argv, tests, LENGTH(tests));
}
