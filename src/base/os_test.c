// The clock, memory files that others can only read, sockets.
#include "base/os.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "unit/unit.h"

enum { PAGE = 4096 };

// ---- time ----

static void
test_the_clock_never_goes_back(void **state)
{
    uint64_t last = lli_now_ns();
    (void)state;
    for (int i = 0; i < 100000; i++) {
        uint64_t now = lli_now_ns();
        assert_true(now >= last);
        last = now;
    }
}

static void
test_a_deadline_that_overflows_is_the_end_of_time(void **state)
{
    (void)state;
    assert_true(lli_deadline_after_ms(UINT64_MAX) == UINT64_MAX);
    assert_true(lli_deadline_after_ms(UINT64_MAX / 1000000) == UINT64_MAX);
    uint64_t before = lli_now_ns();
    uint64_t deadline = lli_deadline_after_ms(7);
    assert_true(deadline >= before + LLI_MS_TO_NS(7));
    assert_true(deadline <= lli_now_ns() + LLI_MS_TO_NS(7));
}

static void
test_milliseconds_left_are_rounded_up_and_bounded(void **state)
{
    (void)state;
    assert_int_equal(lli_ms_until(0), 0);
    assert_int_equal(lli_ms_until(lli_now_ns()), 0);
    assert_int_equal(lli_ms_until(UINT64_MAX), INT_MAX);
    int left = lli_ms_until(lli_now_ns() + LLI_MS_TO_NS(1000000));
    assert_true(left > 990000 && left <= 1000000);
    // Never 0 before the deadline: a poll would spin.
    for (int i = 0; i < 1000; i++) {
        uint64_t deadline = lli_now_ns() + 50000;
        int ms = lli_ms_until(deadline);
        assert_true(ms == 1 || lli_now_ns() >= deadline);
    }
}

static void
test_a_condition_times_out_at_its_deadline(void **state)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond;
    (void)state;
    lli_cond_init(&cond);
    pthread_mutex_lock(&lock);
    assert_false(lli_cond_wait_until(&cond, &lock, 0));
    uint64_t deadline = lli_deadline_after_ms(2);
    while (lli_cond_wait_until(&cond, &lock, deadline)) {
    }
    assert_true(lli_now_ns() >= deadline);
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&cond);
}

// ---- what the machine says ----

static void
test_random_numbers_differ(void **state)
{
    uint64_t values[64];
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(values); i++) {
        values[i] = lli_random_u64();
        for (size_t j = 0; j < i; j++)
            assert_true(values[i] != values[j]);
    }
}

static void
test_the_boot_id_stays_the_same(void **state)
{
    uint8_t first[16];
    uint8_t second[16];
    static const uint8_t zero[16];
    (void)state;
    if (!lli_boot_id(first))
        skip();
    assert_true(lli_boot_id(second));
    assert_memory_equal(first, second, sizeof(first));
    assert_memory_not_equal(first, zero, sizeof(first));
}

static void
test_there_is_memory(void **state)
{
    (void)state;
    assert_true(lli_physical_memory_bytes() > UINT64_C(16) << 20);
}

struct thread_facts {
    sigset_t blocked;
    char name[16];
};

static void *
note_facts(void *arg)
{
    struct thread_facts *facts = arg;
    pthread_sigmask(SIG_SETMASK, NULL, &facts->blocked);
    return NULL;
}

static void
test_a_thread_has_signals_blocked_and_the_starter_as_before(void **state)
{
    struct thread_facts facts;
    sigset_t before;
    sigset_t after;
    pthread_t thread;
    (void)state;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    assert_int_equal(lli_thread_start(&thread, "llm-test", note_facts, &facts), 0);
    pthread_join(thread, NULL);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCHLD, SIGALRM, SIGPIPE};
    for (size_t i = 0; i < LLI_COUNT(signals); i++) {
        assert_true(sigismember(&facts.blocked, signals[i]));
        assert_int_equal(sigismember(&before, signals[i]), sigismember(&after, signals[i]));
    }
    // Crash handlers of the application run where the fault is.
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    for (size_t i = 0; i < LLI_COUNT(faults); i++)
        assert_false(sigismember(&facts.blocked, faults[i]));
}

static struct lli_address
loopback(uint16_t port)
{
    return (struct lli_address){.v4 = {.sin_family = AF_INET,
                                       .sin_port = htons(port),
                                       .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}};
}

static void
test_descriptors_leave_the_standard_ones_free(void **state)
{
    int saved = dup(STDIN_FILENO);
    uint16_t port;
    (void)state;
    close(STDIN_FILENO);
    struct lli_address address = loopback(0);
    int fd = lli_tcp_listen(&address, &port);
    assert_true(fd > STDERR_FILENO);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(fcntl(STDIN_FILENO, F_GETFD), -1);
    close(fd);
    errno = EMFILE;
    assert_int_equal(lli_keep_fd(-1), -1);
    assert_int_equal(errno, EMFILE);
    if (saved >= 0)
        assert_int_equal(dup2(saved, STDIN_FILENO), STDIN_FILENO);
    close(saved);
}

// ---- memory files ----

static int
create(uint64_t bytes, uint8_t **ret_base)
{
    void *base = NULL;
    int fd = lli_memory_file_create("llm-test", bytes, &base);
    assert_true(fd >= 0);
    assert_non_null(base);
    *ret_base = base;
    return fd;
}

static void
test_what_the_owner_writes_others_read(void **state)
{
    uint8_t *base;
    int fd = create(2 * PAGE, &base);
    (void)state;
    const uint8_t *view = lli_memory_file_map(fd, 2 * PAGE);
    assert_non_null(view);
    assert_ptr_not_equal(view, base);
    for (size_t i = 0; i < 2 * PAGE; i++)
        assert_int_equal(view[i], 0);
    unit_fill(base, 2 * PAGE, 1);
    assert_memory_equal(view, base, 2 * PAGE);
    munmap((void *)(uintptr_t)view, 2 * PAGE);
    munmap(base, 2 * PAGE);
    close(fd);
}

static void
test_the_descriptor_gives_no_way_to_write(void **state)
{
    uint8_t *base;
    int fd = create(PAGE, &base);
    (void)state;
    assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    assert_ptr_equal(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
    assert_int_equal(errno, EACCES);
    assert_int_equal(pwrite(fd, "x", 1, 0), -1);
    void *view = (void *)(uintptr_t)lli_memory_file_map(fd, PAGE);
    assert_non_null(view);
    assert_int_equal(mprotect(view, PAGE, PROT_READ | PROT_WRITE), -1);
    munmap(view, PAGE);
    munmap(base, PAGE);
    close(fd);
}

static void
test_the_file_can_neither_shrink_nor_grow(void **state)
{
    uint8_t *base;
    int fd = create(PAGE, &base);
    (void)state;
    int seals = fcntl(fd, F_GET_SEALS);
    assert_int_equal(seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
                     F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    assert_int_equal(ftruncate(fd, 0), -1);
    assert_int_equal(ftruncate(fd, 2 * PAGE), -1);
    munmap(base, PAGE);
    close(fd);
}

static void
test_the_descriptor_is_closed_on_exec(void **state)
{
    uint8_t *base;
    int fd = create(PAGE, &base);
    (void)state;
    assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    munmap(base, PAGE);
    close(fd);
}

static void
test_a_file_of_another_size_is_not_mapped(void **state)
{
    uint8_t *base;
    int fd = create(2 * PAGE, &base);
    (void)state;
    static const uint64_t sizes[] = {PAGE, 2 * PAGE - 1, 2 * PAGE + 1, 3 * PAGE, UINT64_MAX, 0};
    for (size_t i = 0; i < LLI_COUNT(sizes); i++) {
        assert_null(lli_memory_file_map(fd, sizes[i]));
        assert_int_equal(errno, EPROTO);
    }
    munmap(base, 2 * PAGE);
    close(fd);
}

static void
test_a_file_that_could_shrink_is_not_mapped(void **state)
{
    int fd = memfd_create("llm-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    (void)state;
    assert_int_equal(ftruncate(fd, PAGE), 0);
    assert_null(lli_memory_file_map(fd, PAGE));
    assert_int_equal(errno, EPROTO);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), 0);
    assert_null(lli_memory_file_map(fd, PAGE));
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    const void *view = lli_memory_file_map(fd, PAGE);
    assert_non_null(view);
    munmap((void *)(uintptr_t)view, PAGE);
    close(fd);
}

// Where no huge page is free, whoever looks into such a file is killed.
static void
test_a_file_of_huge_pages_is_not_mapped(void **state)
{
    enum { HUGE_PAGE = 1 << 30 }; // or some
    int fd = memfd_create("llm-test", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    (void)state;
    if (fd < 0)
        skip(); // this system has none
    assert_int_equal(ftruncate(fd, HUGE_PAGE), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    assert_null(lli_memory_file_map(fd, HUGE_PAGE));
    assert_int_equal(errno, EPROTO);
    close(fd);
}

static void
test_what_is_no_memory_file_is_not_mapped(void **state)
{
    int ends[2];
    (void)state;
    assert_int_equal(pipe(ends), 0);
    assert_null(lli_memory_file_map(ends[0], PAGE));
    close(ends[0]);
    close(ends[1]);
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_null(lli_memory_file_map(fd, PAGE));
    close(fd);
    assert_null(lli_memory_file_map(-1, PAGE));
}

static void
test_a_file_that_is_too_large_is_refused(void **state)
{
    void *base = NULL;
    (void)state;
    assert_int_equal(lli_memory_file_create("llm-test", UINT64_MAX, &base), -1);
    assert_int_equal(lli_memory_file_create("llm-test", INT64_MAX, &base), -1);
    assert_null(base);
}

// ---- sockets ----

static bool
wait_for(int fd, short events)
{
    struct pollfd wait = {.fd = fd, .events = events};
    return poll(&wait, 1, UNIT_PATIENCE_MS) == 1;
}

static void
assert_tuned_descriptor(int fd)
{
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    assert_int_equal(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
}

static void
test_tcp_sockets_meet_at_a_chosen_port(void **state)
{
    struct lli_address local = loopback(0);
    struct lli_address remote = local;
    struct lli_address peer = {0};
    uint16_t port = 0;
    (void)state;
    int listen_fd = lli_tcp_listen(&local, &port);
    assert_tuned_descriptor(listen_fd);
    assert_true(port > 0);
    assert_int_equal(lli_accept(listen_fd, &peer), -1);
    assert_int_equal(errno, EAGAIN);

    lli_address_set_port(&remote, port);
    bool bound;
    int fd = lli_tcp_connect_start(&local, &remote, &bound);
    assert_tuned_descriptor(fd);
    assert_true(wait_for(listen_fd, POLLIN));
    int accepted = lli_accept(listen_fd, &peer);
    assert_tuned_descriptor(accepted);
    assert_true(lli_address_is_same_host(&peer, &local));
    assert_true(wait_for(fd, POLLOUT));
    assert_int_equal(send(fd, "x", 1, 0), 1);
    assert_true(wait_for(accepted, POLLIN));
    char got = 0;
    assert_int_equal(recv(accepted, &got, 1, 0), 1);
    assert_int_equal(got, 'x');
    close(fd);
    close(accepted);
    close(listen_fd);
}

static void
test_a_port_is_listened_at_once_and_free_again(void **state)
{
    struct lli_address address = loopback(0);
    uint16_t port = 0;
    uint16_t again = 0;
    (void)state;
    int fd = lli_tcp_listen(&address, &port);
    address = loopback(port);
    assert_true(fd >= 0);
    assert_int_equal(lli_tcp_listen(&address, &again), -1);
    assert_int_equal(errno, EADDRINUSE);
    assert_int_equal(again, 0);
    close(fd);
    fd = lli_tcp_listen(&address, &again);
    assert_true(fd >= 0);
    assert_int_equal(again, port);
    close(fd);
}

static void
test_unix_sockets_meet_at_a_random_name(void **state)
{
    char name[64];
    char other[64];
    (void)state;
    int listen_fd = lli_unix_listen(name, sizeof(name));
    int other_fd = lli_unix_listen(other, sizeof(other));
    assert_tuned_descriptor(listen_fd);
    assert_string_not_equal(name, other);
    int fd = lli_unix_connect(name);
    assert_tuned_descriptor(fd);
    assert_true(wait_for(listen_fd, POLLIN));
    int accepted = lli_accept(listen_fd, NULL);
    assert_tuned_descriptor(accepted);
    close(fd);
    close(accepted);
    close(listen_fd);
    close(other_fd);
    assert_int_equal(lli_unix_connect(name), -1);
    assert_int_equal(lli_unix_connect(""), -1);
}

static void
test_a_unix_name_of_any_length_is_harmless(void **state)
{
    char name[512];
    (void)state;
    for (size_t length = 0; length < sizeof(name); length++) {
        memset(name, 'x', length);
        name[length] = '\0';
        assert_int_equal(lli_unix_connect(name), -1);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_clock_never_goes_back),
        cmocka_unit_test(test_a_deadline_that_overflows_is_the_end_of_time),
        cmocka_unit_test(test_milliseconds_left_are_rounded_up_and_bounded),
        cmocka_unit_test(test_a_condition_times_out_at_its_deadline),
        cmocka_unit_test(test_random_numbers_differ),
        cmocka_unit_test(test_the_boot_id_stays_the_same),
        cmocka_unit_test(test_there_is_memory),
        cmocka_unit_test(test_a_thread_has_signals_blocked_and_the_starter_as_before),
        cmocka_unit_test(test_descriptors_leave_the_standard_ones_free),
        cmocka_unit_test(test_what_the_owner_writes_others_read),
        cmocka_unit_test(test_the_descriptor_gives_no_way_to_write),
        cmocka_unit_test(test_the_file_can_neither_shrink_nor_grow),
        cmocka_unit_test(test_the_descriptor_is_closed_on_exec),
        cmocka_unit_test(test_a_file_of_another_size_is_not_mapped),
        cmocka_unit_test(test_a_file_that_could_shrink_is_not_mapped),
        cmocka_unit_test(test_a_file_of_huge_pages_is_not_mapped),
        cmocka_unit_test(test_what_is_no_memory_file_is_not_mapped),
        cmocka_unit_test(test_a_file_that_is_too_large_is_refused),
        cmocka_unit_test(test_tcp_sockets_meet_at_a_chosen_port),
        cmocka_unit_test(test_a_port_is_listened_at_once_and_free_again),
        cmocka_unit_test(test_unix_sockets_meet_at_a_random_name),
        cmocka_unit_test(test_a_unix_name_of_any_length_is_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
