// Whatever comes where memory files are exchanged, bytes and descriptors: what is mapped of it are files
// that can't shrink, as large as they must be, and no descriptor is left over.
//
// Input: a letter, O for an offer to the listener, else an answer to the connector; then how many
// descriptors, a letter for each, and the bytes of the message.
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/os.h"
#include "fuzz/fuzz.h"
#include "link/exchange.h"
#include "transport/view.h"

enum { FDS_MAX = LLI_NUM_VIEW_FDS_MAX + 2, INCARNATION = 77, POOL_BYTES = 1 << 16 };

// What may be handed over; each is opened once.
enum { DIRECTORY, POOL, ANOTHERS, UNSEALED, SHORT, EMPTY, DEVICE, FILES };

static int files[FILES];
static int listener;
static int spare; // the number that the next descriptor gets
static char name[LLI_UNIX_NAME_BYTES];
static struct lli_segment segment;
static struct lli_pool pool;
static struct lli_options options = {.num_devices = 1};
static struct lli_node node = {.options = &options, .segment = &segment, .pools = &pool};

struct parcel {
    uint8_t bytes[512];
    size_t num_bytes;
    int fds[FDS_MAX];
    size_t num_fds;
};

static int
next_descriptor(void)
{
    int fd = dup(listener);
    MUST(fd >= 0);
    close(fd);
    return fd;
}

static int
make_directory(const char *file_name, uint64_t incarnation)
{
    void *base;
    int fd = lli_memory_file_create(file_name, sizeof(struct lli_segment_layout), &base);
    MUST(fd >= 0);
    struct lli_segment_header *header = &((struct lli_segment_layout *)base)->header;
    header->magic = LLI_SEGMENT_MAGIC;
    header->version = LLI_SEGMENT_VERSION;
    header->incarnation = incarnation;
    header->num_devices = 1;
    return fd;
}

static void
open_files(void)
{
    void *base;
    files[DIRECTORY] = make_directory("directory", INCARNATION);
    files[ANOTHERS] = make_directory("another's", INCARNATION + 1);
    files[POOL] = lli_memory_file_create("pool", POOL_BYTES, &base);
    files[UNSEALED] = (int)syscall(SYS_memfd_create, "unsealed", MFD_ALLOW_SEALING);
    files[SHORT] = lli_memory_file_create("short", 4096, &base);
    files[EMPTY] = (int)syscall(SYS_memfd_create, "empty", MFD_ALLOW_SEALING);
    files[DEVICE] = open("/dev/zero", O_RDWR | O_CLOEXEC);
    // All that it lacks are the seals.
    struct lli_segment_header header;
    MUST(pread(files[DIRECTORY], &header, sizeof(header), 0) == sizeof(header));
    MUST(ftruncate(files[UNSEALED], sizeof(struct lli_segment_layout)) == 0);
    MUST(pwrite(files[UNSEALED], &header, sizeof(header), 0) == sizeof(header));
    segment.fd = files[DIRECTORY];
    pool.fd = files[POOL];
    listener = lli_unix_listen(name, sizeof(name));
    MUST(listener >= 0);
    spare = next_descriptor();
}

static void
take_parcel(struct input *input, struct parcel *parcel)
{
    parcel->num_fds = (size_t)take_number(input, 1) % (FDS_MAX + 1);
    for (size_t i = 0; i < parcel->num_fds; i++)
        parcel->fds[i] = files[take_number(input, 1) % FILES];
    parcel->num_bytes = lli_min(input->size, sizeof(parcel->bytes));
    if (parcel->num_bytes > 0)
        memcpy(parcel->bytes, input->data, parcel->num_bytes);
}

static void
send_parcel(int fd, const struct parcel *parcel)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;
    struct iovec piece = {(void *)(uintptr_t)parcel->bytes, parcel->num_bytes};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    memset(&control, 0, sizeof(control));
    if (parcel->num_fds > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(parcel->num_fds * sizeof(int));
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(parcel->num_fds * sizeof(int));
        memcpy(CMSG_DATA(rights), parcel->fds, parcel->num_fds * sizeof(int));
    }
    MUST(sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)parcel->num_bytes);
}

// Only such files may have been mapped, and all of them can be read.
static void
check_view(struct lli_view *view, const int *fds)
{
    volatile const uint8_t *first = (const uint8_t *)view->segment;
    volatile const uint8_t *pool_first = view->pools[0].base;
    MUST(view->segment->header.incarnation == INCARNATION && view->num_devices == 1);
    (void)first[sizeof(struct lli_segment_layout) - 1];
    (void)pool_first[view->pools[0].bytes - 1];
    for (size_t i = 0; i < 2; i++) {
        int seals = fcntl(fds[i], F_GET_SEALS);
        MUST(seals >= 0 && (seals & F_SEAL_SHRINK) != 0);
    }
    lli_view_unmap(view);
}

static void
try_offer(const struct parcel *parcel)
{
    struct lli_exchange_offer offer;
    char why[LLI_REASON_BYTES] = "";
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    send_parcel(pair[0], parcel);
    if (lli_exchange_receive(pair[1], &offer, why, sizeof(why))) {
        struct lli_view *view =
            lli_view_map(offer.fds, offer.num_fds, INCARNATION, 1, getpid(), why, sizeof(why));
        if (view != NULL)
            check_view(view, offer.fds);
        lli_exchange_answer(&node, pair[1], view != NULL ? LLM_SUCCESS : LLM_FAILED, why);
        lli_exchange_offer_fini(&offer);
    } else {
        MUST(why[0] != '\0');
    }
    close(pair[0]);
    close(pair[1]);
}

// The peer's end of an exchange: what it answers is the input's.
static void *
answer_once(void *arg)
{
    uint8_t offer[512];
    int fd;
    do {
        fd = accept(listener, NULL, NULL);
    } while (fd < 0);
    while (recv(fd, offer, sizeof(offer), 0) < 0) {
    }
    send_parcel(fd, arg);
    close(fd);
    return NULL;
}

static void
try_answer(struct parcel *parcel)
{
    struct lli_identity peer = {.incarnation = INCARNATION};
    char why[LLI_REASON_BYTES] = "";
    bool can_read = false;
    pthread_t thread;
    memcpy(peer.unix_name, name, sizeof(name));
    MUST(pthread_create(&thread, NULL, answer_once, parcel) == 0);
    struct lli_view *view = lli_exchange_connect(
        &node, &peer, 1, lli_now_ns() + LLI_MS_TO_NS(60000), &can_read, why, sizeof(why));
    pthread_join(thread, NULL);
    MUST(view != NULL || why[0] != '\0');
    if (view != NULL)
        check_view(view, parcel->fds);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct parcel parcel;
    llm_set_log_level(LLM_LOG_OFF);
    if (name[0] == '\0')
        open_files();
    bool is_offer = take_number(&input, 1) == 'O';
    take_parcel(&input, &parcel);
    if (parcel.num_bytes == 0)
        return 0;
    if (is_offer)
        try_offer(&parcel);
    else
        try_answer(&parcel);
    // Nothing is left open.
    MUST(next_descriptor() == spare);
    return 0;
}
