// A user's C++ program: a decoder comes up, and a prompt that isn't there can't be linked.
#include <llm_datadist/llm_datadist.h>

#include <cstdio>

using namespace llm_datadist;

int
main()
{
    LlmDataDist decoder(2, LlmRole::kDecoder);
    if (decoder.Initialize({{OPTION_DEVICE_ID, "0"}, {OPTION_LOG_LEVEL, "off"}}) != LLM_SUCCESS)
        return 1;
    IpInfo from;
    from.ip = "127.0.0.1";
    IpInfo to;
    to.ip = "127.0.0.1";
    to.port = 1; // nobody listens on the reserved port tcpmux
    ClusterInfo prompt;
    prompt.remote_cluster_id = 1;
    prompt.local_ip_infos.push_back(from);
    prompt.remote_ip_infos.push_back(to);
    std::vector<Status> rets;
    Status status = decoder.LinkLlmClusters({prompt}, rets, 1000);
    std::printf("link to nobody: 0x%x\n", status);
    decoder.Finalize();
    return status == LLM_LINK_FAILED ? 0 : 1;
}
