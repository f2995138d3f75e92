// Where to listen and where to connect: IPv4, IPv6, and names that are looked up when they are needed.
#ifndef LLI_ADDRESS_H
#define LLI_ADDRESS_H

#include <netinet/in.h>

#include "base/base.h"

enum {
    LLI_HOST_BYTES = 256,
    LLI_ADDRESS_TEXT_BYTES = LLI_HOST_BYTES + 8, // "[host]:port"
    LLI_LOOKUP_MAX = 8,                          // addresses of a name; further ones aren't tried
};

// A number and a port, as the system takes them.
struct lli_address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    };
};

// What a program gives.
struct lli_endpoint {
    char host[LLI_HOST_BYTES]; // without brackets
    uint16_t port;
    bool is_name;
    struct lli_address address; // if it is no name; the zone is looked up later
};

// A dotted quad, strictly; an IPv6 address, with or without brackets and zone; the name of a host,
// whose last part is no number.  False, and nothing is written, for anything else.
bool lli_endpoint_parse(const char *host, uint16_t port, struct lli_endpoint *ret_place);

// Splits "host:port", "[v6]:port" at the colon before the port; *ret_place gets port 0.  False unless
// both are there, and the host is one.  Where the port begins is for the caller to read.
bool lli_endpoint_split(const char *begin, const char *end, struct lli_endpoint *ret_place,
                        const char **ret_port);

// Is it the same host, as far as that is known without asking, and port?
bool lli_endpoint_equal(const struct lli_endpoint *a, const struct lli_endpoint *b);

// "127.0.0.1:26000", "[::1]:26000", "name:26000".  Returns `text`.
const char *lli_endpoint_format(const struct lli_endpoint *place,
                                char text[LLI_ADDRESS_TEXT_BYTES]);

// The addresses of a place, with its port, in the order in which to try them; at most LLI_LOOKUP_MAX.
// 0 and the reason in `why` if there are none; *ret_timed_out if the deadline came first.
size_t lli_endpoint_resolve(const struct lli_endpoint *place, uint64_t deadline_ns,
                            struct lli_address ret_addresses[LLI_LOOKUP_MAX], bool *ret_timed_out,
                            char *why, size_t why_size);

socklen_t lli_address_bytes(const struct lli_address *address);
uint16_t lli_address_port(const struct lli_address *address);
void lli_address_set_port(struct lli_address *address, uint16_t port);
// 0.0.0.0 or ::.
bool lli_address_is_any(const struct lli_address *address);
// Whatever the ports; all of is_any are the same.
bool lli_address_is_same_host(const struct lli_address *a, const struct lli_address *b);
// IPv4 in the clothes of IPv6, as a socket for both tells it, becomes IPv4.
void lli_address_unmap(struct lli_address *address);
// The number without port: "127.0.0.1", "::1", "fe80::1%2".  Returns `text`.
const char *lli_address_format(const struct lli_address *address,
                               char text[LLI_ADDRESS_TEXT_BYTES]);

// In a forked child: nobody is looking names up there.
void lli_lookups_in_child(void);

#endif
