// The two families of sockets, behind the calls in sockets.c.
#ifndef SIM_SOCKETS_H
#define SIM_SOCKETS_H

#include <sys/socket.h>

#include "sim.h"

int sim_tcp_socket(bool nonblocking);
int sim_tcp_bind(struct sim_tcp *tcp, const struct sockaddr_in *address);
int sim_tcp_listen(struct sim_tcp *tcp);
int sim_tcp_connect(struct sim_tcp *tcp, const struct sockaddr_in *address);
int sim_tcp_accept(struct sim_tcp *listener, struct sockaddr_in *ret_peer);
void sim_tcp_name(const struct sim_tcp *tcp, bool remote, struct sockaddr_in *ret_name);
int sim_tcp_take_error(struct sim_tcp *tcp);
int sim_tcp_shutdown(struct sim_tcp *tcp, int how);
ssize_t sim_tcp_send(struct sim_tcp *tcp, const struct iovec *pieces, size_t num_pieces, int flags);
// Is there a byte?  1, or -1 and EAGAIN.
ssize_t sim_tcp_peek(const struct sim_tcp *tcp);
ssize_t sim_tcp_receive(struct sim_tcp *tcp, const struct iovec *pieces, size_t num_pieces);
void sim_tcp_reset(void);

int sim_unix_socket(bool nonblocking);
int sim_unix_bind(struct sim_unix *un, const struct sockaddr *address, socklen_t bytes);
int sim_unix_listen(struct sim_unix *un);
int sim_unix_connect(struct sim_unix *un, const struct sockaddr *address, socklen_t bytes);
int sim_unix_accept(struct sim_unix *listener);
int sim_unix_credentials(const struct sim_unix *un, struct ucred *ret_credentials);
ssize_t sim_unix_send(struct sim_unix *un, const struct msghdr *header);
ssize_t sim_unix_receive(struct sim_unix *un, struct msghdr *header);
void sim_unix_reset(void);

#endif
