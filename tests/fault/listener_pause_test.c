// A listener that can't accept, for want of memory or of descriptors, doesn't spin, and goes on when
// there is enough again.  The linker leads accept4 and open here (CMakeLists.txt).
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/os.h"
#include "fault/raw.h"
#include "multi/member.h"
#include "unit/unit.h"

int __real_accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags);
int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);

static atomic_int accept_error; // 0: it works
static sem_t attempts;

int
__wrap_accept4(int fd, struct sockaddr *address, socklen_t *bytes, int flags)
{
    int error = atomic_load(&accept_error);
    if (error == 0)
        return __real_accept4(fd, address, bytes, flags);
    sem_post(&attempts);
    errno = error;
    return -1;
}

// Where accept is short of descriptors, so is everybody: the reserve can't be opened again.
int
__wrap_open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(args, mode_t) : 0;
    va_end(args);
    if (atomic_load(&accept_error) == EMFILE && strcmp(path, "/dev/null") == 0) {
        errno = EMFILE;
        return -1;
    }
    return __real_open(path, flags, mode);
}

enum { LIVENESS_MS = 500, TICK_MS = 100, ATTEMPTS = 12 };

static void
test_it_tries_once_a_tick_and_then_goes_on(void **state)
{
    static const int errors[] = {ENOMEM, ENOBUFS, EMFILE};
    struct member prompt = {0};
    struct member decoder = {0};
    struct member_setup setup = {.cluster_id = RAW_PROMPT,
                                 .role = LLM_ROLE_PROMPT,
                                 .transports = "tcp",
                                 .liveness_ms = LIVENESS_MS};
    (void)state;
    member_open(&prompt, &setup);
    setup.cluster_id = RAW_DECODER;
    setup.role = LLM_ROLE_DECODER;
    member_open(&decoder, &setup);
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        assert_int_equal(sem_init(&attempts, 0, 0), 0);
        atomic_store(&accept_error, errors[i]);
        uint64_t start_ns = lli_now_ns();
        int fd = raw_connect(prompt.ports[0]);
        for (int n = 0; n < ATTEMPTS; n++)
            assert_int_equal(sem_wait(&attempts), 0);
        assert_true(lli_now_ns() - start_ns >= LLI_MS_TO_NS((ATTEMPTS / 2) * TICK_MS));
        atomic_store(&accept_error, 0);
        assert_int_equal(member_link(&decoder, RAW_PROMPT, prompt.ports, 60000), LLM_SUCCESS);
        assert_int_equal(member_unlink(&decoder, RAW_PROMPT, prompt.ports, 60000, 0), LLM_SUCCESS);
        close(fd);
    }
    member_close(&decoder);
    member_close(&prompt);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_tries_once_a_tick_and_then_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
