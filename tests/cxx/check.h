/*
 * check.h - checks that print both values, and what else the C++ tests share.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#ifndef LLM_TESTS_CXX_CHECK_H
#define LLM_TESTS_CXX_CHECK_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "llm_datadist/llm_datadist.h"

namespace check {

inline int &
Failures()
{
    static int failures = 0;
    return failures;
}

/* Numbers in both bases, since statuses are easier to recognize in the second. */
inline void
Print(const char *what, long long value)
{
    std::cerr << "    " << what << " = " << value << " (0x" << std::hex << value << std::dec
              << ")\n";
}

template <typename A, typename B>
inline bool
Equal(const char *file, int line, const char *a_text, const char *b_text, const A &a, const B &b)
{
    const long long x = static_cast<long long>(a);
    const long long y = static_cast<long long>(b);
    if (x == y) {
        return true;
    }
    std::cerr << file << ":" << line << ": not equal\n";
    Print(a_text, x);
    Print(b_text, y);
    Failures()++;
    return false;
}

#define CHECK_EQ(a, b) ::check::Equal(__FILE__, __LINE__, #a, #b, (a), (b))
#define CHECK(condition) ::check::Equal(__FILE__, __LINE__, #condition, "true", (condition), true)
/* For what the rest of the test can't do without. */
#define REQUIRE_EQ(a, b)                                                                           \
    do {                                                                                           \
        if (!CHECK_EQ(a, b)) {                                                                     \
            std::exit(1);                                                                          \
        }                                                                                          \
    } while (0)

inline int
Result()
{
    if (Failures() != 0) {
        std::cerr << Failures() << " checks failed\n";
    }
    return Failures() == 0 ? 0 : 1;
}

using Options = std::map<llm_datadist::AscendString, llm_datadist::AscendString>;

/* A port that was free a moment ago.  Somebody may take it before it is used: try again then. */
inline uint16_t
FreePort()
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    REQUIRE_EQ(bind(fd, reinterpret_cast<sockaddr *>(&address), length), 0);
    REQUIRE_EQ(getsockname(fd, reinterpret_cast<sockaddr *>(&address), &length), 0);
    close(fd);
    return ntohs(address.sin_port);
}

inline std::string
Loopback(uint16_t port)
{
    return "127.0.0.1:" + std::to_string(port);
}

/* start("127.0.0.1:port") -> Status, with port after port until one could be had. */
template <typename Start>
inline uint16_t
Listen(Start start)
{
    for (int attempt = 0;; attempt++) {
        const uint16_t port = FreePort();
        const llm_datadist::Status status = start(Loopback(port).c_str());
        if (status != llm_datadist::LLM_FAILED || attempt == 20) {
            REQUIRE_EQ(status, llm_datadist::LLM_SUCCESS);
            return port;
        }
    }
}

inline llm_datadist::IpInfo
LoopbackIp(uint16_t port)
{
    llm_datadist::IpInfo info;
    info.ip = "127.0.0.1";
    info.port = port;
    return info;
}

/* How to name a cluster of `num_devices` devices behind one port of this host. */
inline llm_datadist::ClusterInfo
ClusterAt(uint64_t cluster_id, uint16_t port, size_t num_devices = 1)
{
    llm_datadist::ClusterInfo cluster;
    cluster.remote_cluster_id = cluster_id;
    cluster.remote_ip_infos.assign(num_devices, LoopbackIp(port));
    cluster.local_ip_infos.assign(num_devices, LoopbackIp(0));
    return cluster;
}

} // namespace check

#endif
