/*
 * fork.cc - a forked child runs the destructors of static objects, and the parent's instance notices
 * nothing.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#include <sys/wait.h>

#include "check.h"

using namespace llm_datadist;

namespace {

constexpr uint64_t kServerId = 21;
constexpr uint64_t kClientId = 22;

LlmDataDist server(kServerId, LlmRole::kPrompt);

void
CheckChild()
{
    const pid_t pid = fork();
    REQUIRE_EQ(pid >= 0, true);
    if (pid == 0) {
        std::vector<Status> rets;
        alarm(20);
        CHECK_EQ(server.UnlinkLlmClusters({}, rets, 100, true), LLM_FAILED);
        exit(check::Result());
    }
    int status = -1;
    REQUIRE_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
}

} // namespace

int
main()
{
    check::Options options = {{OPTION_DEVICE_ID, "0"}};
    const uint16_t port = check::Listen([&](const char *address) {
        options[OPTION_LISTEN_IP_INFO] = address;
        return server.Initialize(options);
    });
    for (int i = 0; i < 3; i++) {
        std::vector<Status> rets;
        LlmDataDist client(kClientId, LlmRole::kDecoder);
        CheckChild();
        REQUIRE_EQ(client.Initialize({{OPTION_DEVICE_ID, "0"}}), LLM_SUCCESS);
        CHECK_EQ(client.LinkLlmClusters({check::ClusterAt(kServerId, port)}, rets, 5000),
                 LLM_SUCCESS);
        client.Finalize();
    }
    return check::Result();
}
