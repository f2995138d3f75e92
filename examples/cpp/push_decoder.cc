/*
 * push_decoder.cc - the decode side of a push: it links, sets blocks aside, and finds them filled.
 *
 *     push_decoder PROMPT_IP:PORT OWN_IP
 *
 * Its partner is push_prompt.cc.  Copyright the llm-datadist authors.  SPDX-License-Identifier:
 * Apache-2.0
 */
#include "example.h"

using namespace llm_datadist;
using namespace example;

int
main(int argc, char **argv)
{
    if (argc != 3) {
        Fail("usage: push_decoder PROMPT_IP:PORT OWN_IP", 2);
    }
    Hear("listening");

    constexpr uint64_t own_id = 2;
    LlmDataDist dist(own_id, LlmRole::kDecoder);
    std::map<AscendString, AscendString> options;
    options[OPTION_DEVICE_ID] = "0";
    Require(dist.Initialize(options), "Initialize");

    Cache cache;
    Require(dist.AllocateCache(PagedCacheDesc(), cache), "AllocateCache");
    Clear(cache);

    ClusterInfo prompt;
    prompt.remote_cluster_id = 1;
    prompt.remote_ip_infos.push_back(ParseAddress(argv[1]));
    prompt.local_ip_infos.push_back(ParseAddress(argv[2]));
    std::vector<Status> rets;
    Require(dist.LinkLlmClusters({prompt}, rets, 5000), "LinkLlmClusters");

    /* Once Link has returned the prompt may push. */
    const std::vector<uint64_t> blocks = {12, 13, 14, 2, 60};
    std::vector<uint64_t> where = {own_id, static_cast<uint64_t>(cache.cache_id)};
    where.insert(where.end(), blocks.begin(), blocks.end());
    Say("linked", where);

    Hear("pushed");
    Verify(cache, blocks, 7);
    Tell("decoder: the layers are here");

    Clear(cache);
    Say("seen");
    Hear("pushed");
    Verify(cache, {blocks[0]}, 7);
    Tell("decoder: the slot is here");

    Require(dist.UnlinkLlmClusters({prompt}, rets, 5000), "UnlinkLlmClusters");
    Say("seen");
    dist.Finalize();
    Tell("decoder: ok");
    return 0;
}
