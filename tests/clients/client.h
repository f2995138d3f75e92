/*
 * client.h - what the clients share that has nothing to do with the order of their calls.
 *
 * Two programs of a pair are run by tests/cxx/run_pair.py: what one says, the other hears.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#ifndef LLM_TESTS_CLIENTS_CLIENT_H
#define LLM_TESTS_CLIENTS_CLIENT_H

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "external/ge_common/ge_api_error_codes.h"
#include "llm_datadist/llm_datadist.h"

namespace client {

/* run_pair.py tries again with other ports, or skips the test. */
constexpr int kAddressTaken = 3;
constexpr int kSkipped = 77;

inline void
Require(ge::Status status, const char *what, int exit_code = 1)
{
    if (status != ge::SUCCESS) {
        std::cerr << "FAILED: " << what << " = 0x" << std::hex << status << "\n";
        std::exit(exit_code);
    }
}

inline void
Expect(bool holds, const std::string &what)
{
    if (!holds) {
        std::cerr << "FAILED: " << what << "\n";
        std::exit(1);
    }
}

inline void
Say(const std::string &word)
{
    std::cout << word << std::endl;
}

inline void
Hear(const std::string &word)
{
    std::string line;
    Expect(static_cast<bool>(std::getline(std::cin, line)),
           "the other side is gone before it said " + word);
    Expect(line == word, "heard " + line + " instead of " + word);
}

/* Where somebody is. */
struct Place {
    std::string ip;
    uint16_t port;
};

inline Place
ParsePlace(const std::string &text)
{
    const size_t colon = text.rfind(':');
    const bool six = text[0] == '['; /* "[::1]:26000" */
    return {six ? text.substr(1, colon - 2) : text.substr(0, colon),
            static_cast<uint16_t>(std::stoi(text.substr(colon + 1)))};
}

inline std::string
Text(const Place &place)
{
    const bool six = place.ip.find(':') != std::string::npos;
    return (six ? "[" + place.ip + "]" : place.ip) + ":" + std::to_string(place.port);
}

inline llm_datadist::IpInfo
Ip(const Place &place)
{
    llm_datadist::IpInfo info;
    info.ip = place.ip.c_str();
    info.port = place.port;
    return info;
}

/* Ends the program where the place is of IPv6, and this machine has none. */
inline void
SkipWithoutFamilyOf(const Place &place)
{
    if (place.ip.find(':') == std::string::npos) {
        return;
    }
    sockaddr_in6 loopback = {};
    loopback.sin6_family = AF_INET6;
    loopback.sin6_addr = in6addr_loopback;
    const int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int error = bind(fd, reinterpret_cast<sockaddr *>(&loopback), sizeof(loopback));
    close(fd);
    if (error != 0) {
        std::cerr << "no IPv6 on this machine's loopback\n";
        std::exit(kSkipped);
    }
}

} // namespace client

#endif
