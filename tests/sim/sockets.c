// The socket calls, for both families.
#include "sockets.h"

#include <errno.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/un.h>

static struct sim_file *
socket_file(int fd)
{
    struct sim_file *file = sim_fd_file(fd);
    if (file != NULL && file->tcp == NULL && file->un == NULL) {
        errno = ENOTSOCK;
        return NULL;
    }
    return file;
}

void
sim_sockets_reset(void)
{
    sim_tcp_reset();
    sim_unix_reset();
}

SIM_CALL(int, socket, int family, int type, int protocol)
{
    bool nonblocking = (type & SOCK_NONBLOCK) != 0;
    (void)protocol;
    sim_point();
    return family == AF_UNIX ? sim_unix_socket(nonblocking) : sim_tcp_socket(nonblocking);
}

SIM_CALL(int, bind, int fd, const struct sockaddr *address, socklen_t bytes)
{
    struct sim_file *file = socket_file(fd);
    if (file == NULL)
        return -1;
    return file->un != NULL
               ? sim_unix_bind(file->un, address, bytes)
               : sim_tcp_bind(file->tcp, (const struct sockaddr_in *)(const void *)address);
}

SIM_CALL(int, listen, int fd, int backlog)
{
    struct sim_file *file = socket_file(fd);
    (void)backlog;
    if (file == NULL)
        return -1;
    return file->un != NULL ? sim_unix_listen(file->un) : sim_tcp_listen(file->tcp);
}

SIM_CALL(int, connect, int fd, const struct sockaddr *address, socklen_t bytes)
{
    sim_point();
    if (sim_interrupted())
        return -1;
    struct sim_file *file = socket_file(fd);
    if (file == NULL)
        return -1;
    return file->un != NULL
               ? sim_unix_connect(file->un, address, bytes)
               : sim_tcp_connect(file->tcp, (const struct sockaddr_in *)(const void *)address);
}

SIM_CALL(int, accept4, int fd, struct sockaddr *peer, socklen_t *bytes, int flags)
{
    sim_point();
    if (sim_interrupted())
        return -1;
    struct sim_file *file = socket_file(fd);
    if (file == NULL)
        return -1;
    if ((flags & SOCK_NONBLOCK) == 0)
        sim_fail("accept4 of a blocking socket");
    if (file->un != NULL) {
        if (peer != NULL)
            peer->sa_family = AF_UNIX;
        return sim_unix_accept(file->un);
    }
    struct sockaddr_in name;
    int accepted = sim_tcp_accept(file->tcp, &name);
    if (accepted >= 0 && peer != NULL) {
        memcpy(peer, &name, sizeof(name));
        *bytes = sizeof(name);
    }
    return accepted;
}

static int
give_name(int fd, bool remote, struct sockaddr *ret_name, socklen_t *bytes)
{
    struct sockaddr_in name;
    struct sim_file *file = socket_file(fd);
    if (file == NULL || file->tcp == NULL)
        return -1;
    sim_tcp_name(file->tcp, remote, &name);
    memcpy(ret_name, &name, sizeof(name));
    *bytes = sizeof(name);
    return 0;
}

SIM_CALL(int, getsockname, int fd, struct sockaddr *ret_name, socklen_t *bytes)
{
    return give_name(fd, false, ret_name, bytes);
}

SIM_CALL(int, getpeername, int fd, struct sockaddr *ret_name, socklen_t *bytes)
{
    return give_name(fd, true, ret_name, bytes);
}

SIM_CALL(int, setsockopt, int fd, int level, int option, const void *value, socklen_t bytes)
{
    (void)level;
    (void)option;
    (void)value;
    (void)bytes;
    return socket_file(fd) == NULL ? -1 : 0;
}

SIM_CALL(int, getsockopt, int fd, int level, int option, void *ret_value, socklen_t *bytes)
{
    struct sim_file *file = socket_file(fd);
    if (file == NULL)
        return -1;
    if (level == SOL_SOCKET && option == SO_PEERCRED && file->un != NULL)
        return sim_unix_credentials(file->un, ret_value);
    if (level == SOL_SOCKET && option == SO_ERROR && file->tcp != NULL) {
        *(int *)ret_value = sim_tcp_take_error(file->tcp);
        *bytes = sizeof(int);
        return 0;
    }
    errno = ENOPROTOOPT;
    return -1;
}

SIM_CALL(int, shutdown, int fd, int how)
{
    struct sim_file *file = socket_file(fd);
    return file == NULL || file->tcp == NULL ? -1 : sim_tcp_shutdown(file->tcp, how);
}

static bool
must_not_block(const struct sim_file *file, int flags)
{
    if (file == NULL)
        return false;
    if (!file->nonblocking && (flags & MSG_DONTWAIT) == 0)
        sim_fail("a call that may block on a socket");
    return true;
}

SIM_CALL(ssize_t, send, int fd, const void *bytes, size_t num_bytes, int flags)
{
    sim_point();
    if (sim_interrupted())
        return -1;
    struct sim_file *file = socket_file(fd);
    struct iovec piece = {(void *)(uintptr_t)bytes, num_bytes};
    if (!must_not_block(file, flags))
        return -1;
    if (file->tcp != NULL)
        return sim_tcp_send(file->tcp, &piece, 1, flags);
    struct msghdr header = {.msg_iov = &piece, .msg_iovlen = 1};
    return sim_unix_send(file->un, &header);
}

SIM_CALL(ssize_t, sendmsg, int fd, const struct msghdr *header, int flags)
{
    sim_point();
    if (sim_interrupted())
        return -1;
    struct sim_file *file = socket_file(fd);
    if (!must_not_block(file, flags))
        return -1;
    return file->tcp != NULL ? sim_tcp_send(file->tcp, header->msg_iov, header->msg_iovlen, flags)
                             : sim_unix_send(file->un, header);
}

SIM_CALL(ssize_t, recv, int fd, void *bytes, size_t num_bytes, int flags)
{
    sim_point();
    if (sim_interrupted())
        return -1;
    struct sim_file *file = socket_file(fd);
    struct iovec piece = {bytes, num_bytes};
    if (!must_not_block(file, flags))
        return -1;
    if (file->tcp != NULL && (flags & MSG_PEEK) != 0)
        return sim_tcp_peek(file->tcp);
    if (file->tcp != NULL)
        return sim_tcp_receive(file->tcp, &piece, 1);
    struct msghdr header = {.msg_iov = &piece, .msg_iovlen = 1};
    return sim_unix_receive(file->un, &header);
}

SIM_CALL(ssize_t, recvmsg, int fd, struct msghdr *header, int flags)
{
    sim_point();
    if (sim_interrupted())
        return -1;
    struct sim_file *file = socket_file(fd);
    if (!must_not_block(file, flags))
        return -1;
    if (file->un != NULL)
        return sim_unix_receive(file->un, header);
    header->msg_controllen = 0;
    header->msg_flags = 0;
    return sim_tcp_receive(file->tcp, header->msg_iov, header->msg_iovlen);
}

// ---- names: nobody in the room has any ----

SIM_CALL(int, getaddrinfo, const char *name, const char *service, const struct addrinfo *hints,
         struct addrinfo **ret_infos)
{
    (void)name;
    (void)service;
    (void)hints;
    (void)ret_infos;
    return EAI_NONAME;
}

SIM_CALL(void, freeaddrinfo, struct addrinfo *infos)
{
    (void)infos;
    sim_fail("the addresses of a name are freed");
}

SIM_CALL(const char *, gai_strerror, int error)
{
    (void)error;
    return "there are no names";
}

SIM_CALL(unsigned, if_nametoindex, const char *name)
{
    (void)name;
    return 0;
}
