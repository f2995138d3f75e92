// A crowd of bad peers, all at once: some say nothing, some a byte now and then, some rubbish; some are
// linked and flood their link, ask for what they never read, or announce what they never send.  Each
// costs its own connection: an honest link beside them goes on as if they weren't there.
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/os.h"
#include "fault/raw.h"
#include "registered/kit.h"

enum { HONEST = 21, TENSORS = 2, SLOTS = 16, STRIDE = 4096 };
enum { BIG = 0, SMALL = 1, BIG_SLOTS = 64, BIG_STRIDE = 256 << 10 };
enum { FOR_MS = SCALED(2000, 4000), BOUND_MS = SCALED(5000, 20000) };
enum { SILENT = 200, TRICKLING = 100, LINKED = 6 };

static _Atomic bool over;
static uint16_t port;

// Without a word about what goes wrong: the crowd may be turned away.
static int
dial(void)
{
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&name, sizeof(name)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void
say(int fd, const void *bytes, size_t size)
{
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    size_t done = 0;
    while (done < size && !atomic_load(&over)) {
        ssize_t now =
            send(fd, (const uint8_t *)bytes + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (now < 0 && errno != EAGAIN)
            return;
        if (now > 0)
            done += (size_t)now;
        else
            (void)poll(&wait, 1, 20);
    }
}

static void *
be_silent(void *arg)
{
    int fds[SILENT];
    (void)arg;
    for (unsigned i = 0; i < SILENT; i++)
        fds[i] = dial();
    while (!atomic_load(&over))
        (void)poll(NULL, 0, 20);
    for (unsigned i = 0; i < SILENT; i++)
        close(fds[i]);
    return NULL;
}

// A hello, byte by byte, on many connections.
static void *
trickle(void *arg)
{
    int fds[TRICKLING];
    struct raw_message message;
    struct lli_hello hello = raw_hello(LLI_PURPOSE_CONTROL);
    (void)arg;
    raw_make_hello(&message, &hello);
    for (unsigned i = 0; i < TRICKLING; i++)
        fds[i] = dial();
    for (size_t n = 0; n + 1 < message.size && !atomic_load(&over); n++) {
        for (unsigned i = 0; i < TRICKLING; i++)
            say(fds[i], &message.bytes[n], 1);
        (void)poll(NULL, 0, 5);
    }
    while (!atomic_load(&over))
        (void)poll(NULL, 0, 20);
    for (unsigned i = 0; i < TRICKLING; i++)
        close(fds[i]);
    return NULL;
}

static void *
talk_rubbish(void *arg)
{
    uint8_t rubbish[256];
    (void)arg;
    while (!atomic_load(&over)) {
        int fd = dial();
        for (size_t i = 0; i < sizeof(rubbish); i++)
            rubbish[i] = (uint8_t)(lli_random_u64() >> 13);
        say(fd, rubbish, sizeof(rubbish));
        close(fd);
        // The system drops newcomers where connections come faster than a slow machine takes them.
        (void)poll(NULL, 0, 2);
    }
    return NULL;
}

// ---- linked ----

struct flooder {
    struct raw_link link;
    struct raw_message message;
    bool counts; // every message needs another number
    bool sends_data;
};

static void *
flood(void *arg)
{
    struct flooder *f = arg;
    for (uint64_t id = 1; !atomic_load(&over); id++) {
        if (f->counts)
            memcpy(f->message.bytes + 16, &id, sizeof(id));
        say(f->sends_data ? f->link.data : f->link.control, f->message.bytes, f->message.size);
    }
    return NULL;
}

static void
make_request(struct raw_message *message, bool push, int64_t cache_id)
{
    static struct lli_block_run all = {0, BIG_SLOTS};
    struct lli_request request = {
        .push = push,
        .version_2 = true,
        .kind = LLI_REQUEST_BLOCKS,
        .cache_id = cache_id,
        .num_tensors = TENSORS,
        .stride = BIG_STRIDE,
        .runs = &all,
        .num_runs = 1,
    };
    raw_make_request(message, 7, &request);
}

static void
flooders_open(struct flooder *flooders, int64_t big)
{
    static const uint8_t note[1000];
    for (unsigned i = 0; i < LINKED; i++)
        raw_link_open(&flooders[i].link, port, RAW_STRANGER + i);
    // What nobody reads, what nobody sends, what isn't there.
    make_request(&flooders[0].message, false, big);
    make_request(&flooders[1].message, true, big);
    make_request(&flooders[2].message, false, 12345);
    flooders[0].counts = flooders[1].counts = flooders[2].counts = true;
    raw_make(&flooders[3].message, LLI_NOTIFY, 0, 0, note, sizeof(note));
    raw_make(&flooders[4].message, LLI_CANCEL, 5, 0, NULL, 0);
    raw_make(&flooders[5].message, LLI_DATA, 5, 0, note, sizeof(note));
    flooders[5].sends_data = true;
}

static void
test_honest_link_in_a_crowd(void **state)
{
    static void *(*const strangers[])(void *) = {be_silent, trickle, talk_rubbish};
    static struct flooder flooders[LINKED];
    pthread_t threads[LENGTH(strangers) + LINKED];
    struct other owner = {0};
    struct end honest;
    struct kv kv;
    struct end_setup setup = {.id = RAW_PROMPT, .transports = "tcp", .listens = true};
    unsigned num_pulls = 0;
    uint64_t longest = 0;
    (void)state;
    other_open(&owner, &setup);
    port = owner.port;
    int64_t big = other_cache(&owner, BIG, true, TENSORS, BIG_SLOTS, BIG_STRIDE);
    int64_t small = other_cache(&owner, SMALL, true, TENSORS, SLOTS, STRIDE);
    other_fill(&owner, SMALL, 5);
    end_open(&honest, &(struct end_setup){.id = HONEST, .transports = "tcp"});
    kv_open(&kv, &honest, TENSORS, SLOTS, STRIDE);
    assert_ok(end_link(&honest, RAW_PROMPT, owner.port));
    flooders_open(flooders, big);
    for (unsigned i = 0; i < LENGTH(threads); i++) {
        bool is_stranger = i < LENGTH(strangers);
        void *arg = is_stranger ? NULL : (void *)&flooders[i - LENGTH(strangers)];
        assert_int_equal(pthread_create(&threads[i], NULL, is_stranger ? strangers[i] : flood, arg),
                         0);
    }
    struct job job = {.peer = RAW_PROMPT, .remote = small, .count = SLOTS, .shift = 1};
    uint64_t start = now_ms();
    while (now_ms() - start < FOR_MS) {
        kv_fill(&kv, 0);
        uint64_t begin = now_ms();
        assert_ok(job_run(&job, &honest, &kv));
        uint64_t took = now_ms() - begin;
        longest = took > longest ? took : longest;
        assert_true(kv_holds(&kv, 5, SLOTS, 1));
        num_pulls++;
    }
    // A newcomer gets in as well.
    assert_ok(end_unlink(&honest, RAW_PROMPT, owner.port, false));
    uint64_t begin = now_ms();
    assert_ok(end_link(&honest, RAW_PROMPT, owner.port));
    uint64_t linking = now_ms() - begin;
    atomic_store(&over, true);
    for (unsigned i = 0; i < LENGTH(threads); i++)
        pthread_join(threads[i], NULL);
    print_message("%u pulls, the longest took %u ms, linking %u ms\n", num_pulls, (unsigned)longest,
                  (unsigned)linking);
    assert_true(longest < BOUND_MS);
    assert_true(linking < BOUND_MS);
    for (unsigned i = 0; i < LINKED; i++)
        raw_link_close(&flooders[i].link);
    assert_true(other_holds(&owner, SMALL, 5, SLOTS, 0));
    end_close(&honest);
    kv_free(&kv);
    assert_true(process_join(&owner.process));
}

static const struct CMUnitTest tests[] = {KIT_TEST(test_honest_link_in_a_crowd)};

int
main(int argc, char **argv)
{
    return kit_main(argc, argv, tests, LENGTH(tests));
}
