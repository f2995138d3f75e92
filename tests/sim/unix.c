// Abstract Unix sockets of messages, within a host.  Descriptors of memory files travel with them.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "sockets.h"

enum { FDS_PER_MESSAGE = 16 };

struct message {
    struct message *next;
    size_t bytes;
    size_t num_files;
    struct sim_file *files[FDS_PER_MESSAGE];
    uint8_t data[];
};

struct sim_unix {
    struct sim_unix *next; // of all
    struct sim_file *file; // NULL: closed, or not yet accepted
    struct sim_process *process;
    char name[108];
    bool listening;
    bool closed;
    struct sim_unix *peer;
    struct sim_unix *next_waiting; // connections not yet accepted
    struct sim_unix *first_waiting;
    struct message *messages;
};

static struct sim_unix *all;

static struct sim_unix *
new_unix(struct sim_process *process)
{
    struct sim_unix *un = calloc(1, sizeof(*un));
    un->process = process;
    un->next = all;
    all = un;
    return un;
}

int
sim_unix_socket(bool nonblocking)
{
    struct sim_process *process = sim_current_process();
    struct sim_file *file = sim_file_new(SIM_FILE_UNIX, process);
    file->nonblocking = nonblocking;
    file->un = new_unix(process);
    file->un->file = file;
    return sim_fd_install(process, file);
}

static void
free_message(struct message *message)
{
    for (size_t i = 0; i < message->num_files; i++)
        sim_file_put(message->files[i]);
    free(message);
}

void
sim_unix_close(struct sim_unix *un)
{
    un->closed = true;
    un->file = NULL;
    while (un->messages != NULL) {
        struct message *message = un->messages;
        un->messages = message->next;
        free_message(message);
    }
    while (un->first_waiting != NULL) {
        struct sim_unix *waiting = un->first_waiting;
        un->first_waiting = waiting->next_waiting;
        sim_unix_close(waiting);
    }
    if (un->peer != NULL)
        sim_file_changed(un->peer->file);
}

void
sim_unix_reset(void)
{
    while (all != NULL) {
        struct sim_unix *un = all;
        all = un->next;
        while (un->messages != NULL) {
            struct message *message = un->messages;
            un->messages = message->next;
            free_message(message);
        }
        free(un);
    }
}

uint32_t
sim_unix_events(const struct sim_unix *un)
{
    if (un->listening)
        return un->first_waiting != NULL ? EPOLLIN : 0;
    if (un->peer == NULL)
        return EPOLLOUT | EPOLLHUP;
    uint32_t events = EPOLLOUT;
    if (un->messages != NULL)
        events |= EPOLLIN;
    if (un->peer->closed)
        events |= EPOLLIN | EPOLLHUP | EPOLLRDHUP;
    return events;
}

static const char *
name_of(const struct sockaddr *address, socklen_t bytes, char name[108])
{
    memset(name, 0, 108);
    memcpy(name, ((const struct sockaddr_un *)address)->sun_path + 1,
           bytes - offsetof(struct sockaddr_un, sun_path) - 1);
    return name;
}

static struct sim_unix *
find_named(int host, const char *name)
{
    for (struct sim_unix *un = all; un != NULL; un = un->next) {
        if (!un->closed && un->process->host == host && strcmp(un->name, name) == 0)
            return un;
    }
    return NULL;
}

int
sim_unix_bind(struct sim_unix *un, const struct sockaddr *address, socklen_t bytes)
{
    char name[108];
    name_of(address, bytes, name);
    if (find_named(un->process->host, name) != NULL) {
        errno = EADDRINUSE;
        return -1;
    }
    memcpy(un->name, name, sizeof(name));
    return 0;
}

int
sim_unix_listen(struct sim_unix *un)
{
    un->listening = true;
    return 0;
}

int
sim_unix_connect(struct sim_unix *un, const struct sockaddr *address, socklen_t bytes)
{
    char name[108];
    struct sim_unix *listener = find_named(un->process->host, name_of(address, bytes, name));
    if (listener == NULL || !listener->listening) {
        errno = ECONNREFUSED;
        return -1;
    }
    struct sim_unix *accepted = new_unix(listener->process);
    accepted->peer = un;
    un->peer = accepted;
    struct sim_unix **last = &listener->first_waiting;
    while (*last != NULL)
        last = &(*last)->next_waiting;
    *last = accepted;
    sim_file_changed(listener->file);
    return 0;
}

int
sim_unix_accept(struct sim_unix *listener)
{
    struct sim_unix *un = listener->first_waiting;
    if (un == NULL) {
        errno = EAGAIN;
        return -1;
    }
    struct sim_file *file = sim_file_new(SIM_FILE_UNIX, listener->process);
    file->nonblocking = true;
    int fd = sim_fd_install(listener->process, file);
    if (fd < 0)
        return -1;
    listener->first_waiting = un->next_waiting;
    un->next_waiting = NULL;
    file->un = un;
    un->file = file;
    return fd;
}

int
sim_unix_credentials(const struct sim_unix *un, struct ucred *ret_credentials)
{
    if (un->peer == NULL) {
        errno = ENOTCONN;
        return -1;
    }
    *ret_credentials = (struct ucred){.pid = un->peer->process->pid, .uid = 1000, .gid = 1000};
    return 0;
}

static void
take_rights(struct message *message, const struct msghdr *header)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c != NULL;
         c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)header, c)) {
        size_t num_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < num_fds && message->num_files < FDS_PER_MESSAGE; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            struct sim_file *file = sim_fd_file(fd);
            if (file == NULL)
                continue;
            file->references++;
            message->files[message->num_files++] = file;
        }
    }
}

ssize_t
sim_unix_send(struct sim_unix *un, const struct msghdr *header)
{
    if (un->peer == NULL || un->peer->closed) {
        errno = un->peer == NULL ? ENOTCONN : EPIPE;
        return -1;
    }
    size_t bytes = 0;
    for (size_t i = 0; i < header->msg_iovlen; i++)
        bytes += header->msg_iov[i].iov_len;
    struct message *message = calloc(1, sizeof(*message) + bytes);
    for (size_t i = 0; i < header->msg_iovlen; i++) {
        memcpy(message->data + message->bytes, header->msg_iov[i].iov_base,
               header->msg_iov[i].iov_len);
        message->bytes += header->msg_iov[i].iov_len;
    }
    take_rights(message, header);
    struct message **last = &un->peer->messages;
    while (*last != NULL)
        last = &(*last)->next;
    *last = message;
    sim_file_changed(un->peer->file);
    return (ssize_t)bytes;
}

static void
give_rights(struct sim_process *process, struct message *message, struct msghdr *header)
{
    int fds[FDS_PER_MESSAGE];
    size_t num_fds = 0;
    for (size_t i = 0; i < message->num_files; i++) {
        int fd = sim_fd_install(process, message->files[i]);
        if (fd < 0)
            header->msg_flags |= MSG_CTRUNC;
        else
            fds[num_fds++] = fd;
    }
    message->num_files = 0;
    if (num_fds == 0) {
        header->msg_controllen = 0;
        return;
    }
    struct cmsghdr *rights = CMSG_FIRSTHDR(header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(num_fds * sizeof(int));
    memcpy(CMSG_DATA(rights), fds, num_fds * sizeof(int));
    header->msg_controllen = CMSG_SPACE(num_fds * sizeof(int));
}

ssize_t
sim_unix_receive(struct sim_unix *un, struct msghdr *header)
{
    struct message *message = un->messages;
    if (message == NULL) {
        if (un->peer != NULL && un->peer->closed) {
            header->msg_controllen = 0;
            header->msg_flags = 0;
            return 0;
        }
        errno = EAGAIN;
        return -1;
    }
    un->messages = message->next;
    size_t done = 0;
    for (size_t i = 0; i < header->msg_iovlen && done < message->bytes; i++) {
        size_t left = message->bytes - done;
        size_t some = left < header->msg_iov[i].iov_len ? left : header->msg_iov[i].iov_len;
        memcpy(header->msg_iov[i].iov_base, message->data + done, some);
        done += some;
    }
    header->msg_flags = done < message->bytes ? MSG_TRUNC : 0;
    give_rights(un->process, message, header);
    free_message(message);
    return (ssize_t)done;
}
