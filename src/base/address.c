#include "base/address.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/mem.h"
#include "base/os.h"

enum {
    LABEL_BYTES_MAX = 63,
    NAME_BYTES_MAX = 253,
    LOOKUPS_MAX = 64, // at once, with those that nobody waits for any more
};

// ---- numbers ----

socklen_t
lli_address_bytes(const struct lli_address *address)
{
    return address->any.sa_family == AF_INET6 ? sizeof(address->v6) : sizeof(address->v4);
}

uint16_t
lli_address_port(const struct lli_address *address)
{
    return ntohs(address->any.sa_family == AF_INET6 ? address->v6.sin6_port : address->v4.sin_port);
}

void
lli_address_set_port(struct lli_address *address, uint16_t port)
{
    if (address->any.sa_family == AF_INET6)
        address->v6.sin6_port = htons(port);
    else
        address->v4.sin_port = htons(port);
}

bool
lli_address_is_any(const struct lli_address *address)
{
    return address->any.sa_family == AF_INET6 ? IN6_IS_ADDR_UNSPECIFIED(&address->v6.sin6_addr)
                                              : address->v4.sin_addr.s_addr == htonl(INADDR_ANY);
}

bool
lli_address_is_same_host(const struct lli_address *a, const struct lli_address *b)
{
    if (lli_address_is_any(a) && lli_address_is_any(b))
        return true;
    if (a->any.sa_family != b->any.sa_family)
        return false;
    if (a->any.sa_family == AF_INET)
        return a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
    return IN6_ARE_ADDR_EQUAL(&a->v6.sin6_addr, &b->v6.sin6_addr) &&
           a->v6.sin6_scope_id == b->v6.sin6_scope_id;
}

void
lli_address_unmap(struct lli_address *address)
{
    if (address->any.sa_family != AF_INET6 || !IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr))
        return;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = address->v6.sin6_port};
    memcpy(&v4.sin_addr, &address->v6.sin6_addr.s6_addr[12], sizeof(v4.sin_addr));
    memset(address, 0, sizeof(*address));
    address->v4 = v4;
}

const char *
lli_address_format(const struct lli_address *address, char text[LLI_ADDRESS_TEXT_BYTES])
{
    if (address->any.sa_family != AF_INET6) {
        inet_ntop(AF_INET, &address->v4.sin_addr, text, LLI_ADDRESS_TEXT_BYTES);
        return text;
    }
    inet_ntop(AF_INET6, &address->v6.sin6_addr, text, LLI_ADDRESS_TEXT_BYTES);
    size_t length = strlen(text);
    if (address->v6.sin6_scope_id != 0)
        snprintf(text + length, LLI_ADDRESS_TEXT_BYTES - length, "%%%u", address->v6.sin6_scope_id);
    return text;
}

// ---- what programs give ----

static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool
is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// A part of a name, from dot to dot.
static bool
is_label(const char *begin, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (!is_letter(begin[i]) && !is_digit(begin[i]) && begin[i] != '-' && begin[i] != '_')
            return false;
    }
    return bytes > 0 && bytes <= LABEL_BYTES_MAX && begin[0] != '-' && begin[bytes - 1] != '-';
}

// Also the forms of IPv4 addresses that old functions take: "127.1", "0x7f000001".
static bool
is_number(const char *begin, size_t bytes)
{
    if (bytes > 1 && begin[0] == '0' && (begin[1] == 'x' || begin[1] == 'X'))
        return true;
    for (size_t i = 0; i < bytes; i++) {
        if (!is_digit(begin[i]))
            return false;
    }
    return true;
}

static bool
is_name(const char *host)
{
    const char *label = host;
    if (strlen(host) > NAME_BYTES_MAX)
        return false;
    for (;;) {
        size_t bytes = strcspn(label, ".");
        if (!is_label(label, bytes))
            return false;
        // A dot at the end says that the name is complete.
        if (label[bytes] == '\0' || label[bytes + 1] == '\0')
            return !is_number(label, bytes);
        label += bytes + 1;
    }
}

// Of an interface: its name or number.
static bool
is_zone(const char *zone)
{
    size_t bytes = strlen(zone);
    for (size_t i = 0; i < bytes; i++) {
        if (!is_letter(zone[i]) && !is_digit(zone[i]) && strchr("-_.", zone[i]) == NULL)
            return false;
    }
    return bytes > 0 && bytes < IF_NAMESIZE;
}

static bool
parse_v6(const char *host, struct lli_address *ret_address)
{
    char number[INET6_ADDRSTRLEN];
    const char *zone = strchr(host, '%');
    size_t bytes = zone == NULL ? strlen(host) : (size_t)(zone - host);
    if (bytes >= sizeof(number) || (zone != NULL && !is_zone(zone + 1)))
        return false;
    memcpy(number, host, bytes);
    number[bytes] = '\0';
    ret_address->v6.sin6_family = AF_INET6;
    return inet_pton(AF_INET6, number, &ret_address->v6.sin6_addr) == 1;
}

bool
lli_endpoint_parse(const char *host, uint16_t port, struct lli_endpoint *ret_place)
{
    struct lli_endpoint place = {.port = port};
    size_t bytes = host == NULL ? 0 : strlen(host);
    bool has_brackets = bytes > 2 && host[0] == '[' && host[bytes - 1] == ']';
    if (bytes == 0 || bytes >= sizeof(place.host))
        return false;
    memcpy(place.host, host + has_brackets, bytes - 2 * (size_t)has_brackets);
    place.address.v4.sin_family = AF_INET;
    if (strchr(place.host, ':') != NULL) {
        if (!parse_v6(place.host, &place.address))
            return false;
    } else if (has_brackets) {
        return false;
    } else if (inet_pton(AF_INET, place.host, &place.address.v4.sin_addr) != 1) {
        place.is_name = true;
        if (!is_name(place.host))
            return false;
    }
    lli_address_set_port(&place.address, port);
    lli_address_unmap(&place.address);
    *ret_place = place;
    return true;
}

bool
lli_endpoint_split(const char *begin, const char *end, struct lli_endpoint *ret_place,
                   const char **ret_port)
{
    char host[LLI_HOST_BYTES];
    const char *behind =
        begin < end && *begin == '[' ? memchr(begin, ']', (size_t)(end - begin)) : NULL;
    const char *colon = behind != NULL ? behind + 1 : memchr(begin, ':', (size_t)(end - begin));
    if (colon == NULL || colon >= end || *colon != ':' || (size_t)(colon - begin) >= sizeof(host))
        return false;
    memcpy(host, begin, (size_t)(colon - begin));
    host[colon - begin] = '\0';
    *ret_port = colon + 1;
    return lli_endpoint_parse(host, 0, ret_place);
}

bool
lli_endpoint_equal(const struct lli_endpoint *a, const struct lli_endpoint *b)
{
    bool is_same_host = a->is_name || b->is_name
                            ? strcmp(a->host, b->host) == 0
                            : lli_address_is_same_host(&a->address, &b->address);
    return is_same_host && a->port == b->port;
}

const char *
lli_endpoint_format(const struct lli_endpoint *place, char text[LLI_ADDRESS_TEXT_BYTES])
{
    bool has_colon = strchr(place->host, ':') != NULL;
    snprintf(text, LLI_ADDRESS_TEXT_BYTES, has_colon ? "[%s]:%u" : "%s:%u", place->host,
             place->port);
    return text;
}

// ---- looking names up ----

// The system's function knows no deadline: it runs in a thread of its own, which is left alone when
// nobody waits any more.
struct lookup {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    char name[LLI_HOST_BYTES];
    bool is_over;      // guarded by lock, as the rest
    bool is_abandoned; // by whoever asked; else by the thread
    int error;
    struct lli_address addresses[LLI_LOOKUP_MAX];
    size_t num_addresses;
};

static _Atomic unsigned num_lookups;

void
lli_lookups_in_child(void)
{
    atomic_store(&num_lookups, 0);
}

static void
free_lookup(struct lookup *lookup)
{
    pthread_cond_destroy(&lookup->ended);
    pthread_mutex_destroy(&lookup->lock);
    lli_free(lookup);
    atomic_fetch_sub(&num_lookups, 1);
}

static void
take_results(struct lookup *lookup, const struct addrinfo *infos)
{
    for (const struct addrinfo *info = infos;
         info != NULL && lookup->num_addresses < LLI_LOOKUP_MAX; info = info->ai_next) {
        struct lli_address *address = &lookup->addresses[lookup->num_addresses];
        if (info->ai_family != AF_INET && info->ai_family != AF_INET6)
            continue;
        memcpy(address, info->ai_addr, info->ai_addrlen);
        lli_address_unmap(address);
        lookup->num_addresses++;
    }
}

static void *
look_up(void *arg)
{
    struct lookup *lookup = arg;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *infos = NULL;
    int error = getaddrinfo(lookup->name, NULL, &hints, &infos);
    pthread_mutex_lock(&lookup->lock);
    lookup->error = error;
    if (error == 0)
        take_results(lookup, infos);
    lookup->is_over = true;
    bool is_mine = lookup->is_abandoned;
    pthread_cond_signal(&lookup->ended);
    pthread_mutex_unlock(&lookup->lock);
    if (error == 0)
        freeaddrinfo(infos);
    if (is_mine)
        free_lookup(lookup);
    return NULL;
}

static struct lookup *
start_lookup(const char *name)
{
    pthread_t thread;
    bool is_crowded = atomic_fetch_add(&num_lookups, 1) >= LOOKUPS_MAX;
    struct lookup *lookup = is_crowded ? NULL : lli_calloc(1, sizeof(*lookup));
    if (lookup == NULL) {
        atomic_fetch_sub(&num_lookups, 1);
        return NULL;
    }
    pthread_mutex_init(&lookup->lock, NULL);
    lli_cond_init(&lookup->ended);
    snprintf(lookup->name, sizeof(lookup->name), "%s", name);
    if (lli_thread_start(&thread, "llm-lookup", look_up, lookup) != 0) {
        free_lookup(lookup);
        return NULL;
    }
    pthread_detach(thread);
    return lookup;
}

static size_t
resolve_name(const struct lli_endpoint *place, uint64_t deadline_ns,
             struct lli_address *ret_addresses, bool *ret_timed_out, char *why, size_t why_size)
{
    bool in_time = true;
    struct lookup *lookup = start_lookup(place->host);
    if (lookup == NULL) {
        snprintf(why, why_size, "can't look up %s: out of memory or threads", place->host);
        return 0;
    }
    pthread_mutex_lock(&lookup->lock);
    while (!lookup->is_over && in_time)
        in_time = lli_cond_wait_until(&lookup->ended, &lookup->lock, deadline_ns);
    bool is_over = lookup->is_over;
    lookup->is_abandoned = !is_over;
    size_t num_addresses = is_over ? lookup->num_addresses : 0;
    int error = is_over ? lookup->error : 0;
    memcpy(ret_addresses, lookup->addresses, num_addresses * sizeof(*ret_addresses));
    pthread_mutex_unlock(&lookup->lock);
    if (is_over)
        free_lookup(lookup);
    *ret_timed_out = !is_over;
    if (!is_over)
        snprintf(why, why_size, "the time is up before the name %s is looked up", place->host);
    else if (num_addresses == 0)
        snprintf(why, why_size, "can't look up %s: %s", place->host,
                 error == 0 ? "it has no address" : gai_strerror(error));
    for (size_t i = 0; i < num_addresses; i++)
        lli_address_set_port(&ret_addresses[i], place->port);
    return num_addresses;
}

// False: there is no such interface.
static bool
find_zone(const char *zone, uint32_t *ret_scope)
{
    *ret_scope = if_nametoindex(zone);
    if (*ret_scope == 0 && strspn(zone, "0123456789") == strlen(zone))
        *ret_scope = (uint32_t)strtoul(zone, NULL, 10);
    return *ret_scope != 0;
}

size_t
lli_endpoint_resolve(const struct lli_endpoint *place, uint64_t deadline_ns,
                     struct lli_address ret_addresses[LLI_LOOKUP_MAX], bool *ret_timed_out,
                     char *why, size_t why_size)
{
    *ret_timed_out = false;
    if (place->is_name)
        return resolve_name(place, deadline_ns, ret_addresses, ret_timed_out, why, why_size);
    const char *zone = strchr(place->host, '%');
    ret_addresses[0] = place->address;
    lli_address_set_port(&ret_addresses[0], place->port);
    if (zone != NULL && place->address.any.sa_family == AF_INET6 &&
        !find_zone(zone + 1, &ret_addresses[0].v6.sin6_scope_id)) {
        snprintf(why, why_size, "there is no interface %s", zone + 1);
        return 0;
    }
    return 1;
}
