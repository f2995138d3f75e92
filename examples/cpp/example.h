/*
 * example.h - what the C++ examples share and what has nothing to do with KV caches.
 *
 * Two programs of a pair talk to each other as a router talks to engines, in lines of text: what a
 * program has to say goes to standard output, what it is told comes from standard input.  What a
 * human reads goes to standard error.  So a pair runs like this
 *
 *     mkfifo back
 *     ./pull_prompt 127.0.0.1:26000 <back | ./pull_decoder 127.0.0.1:26000 127.0.0.1 >back
 *
 * or on two terminals or machines, and then one copies the lines by hand.
 *
 * Exit codes: 0 all went well, 1 something failed or data were wrong, 2 usage, 3 the address to
 * listen at could not be had.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 */
#ifndef LLM_DATADIST_EXAMPLE_H
#define LLM_DATADIST_EXAMPLE_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "llm_datadist/llm_datadist.h"

namespace example {

using llm_datadist::Cache;
using llm_datadist::Status;

/* The size of our pretended model: a cache has 2 tensors (K and V) per layer, a tensor has kBlocks
 * blocks, a block holds the keys or values of kTokensPerBlock tokens. */
constexpr int32_t kLayers = 4;
constexpr int64_t kBlocks = 64;
constexpr int64_t kTokensPerBlock = 16;
constexpr int64_t kHeads = 8;
constexpr int64_t kHeadSize = 64;

inline void
Tell(const std::string &line)
{
    std::cerr << line << "\n";
}

[[noreturn]] inline void
Fail(const std::string &line, int exit_code = 1)
{
    Tell("FAILED: " + line);
    std::exit(exit_code);
}

/* Ends the program unless `status` is success. */
inline void
Require(Status status, const std::string &what, int exit_code = 1)
{
    if (status != llm_datadist::LLM_SUCCESS) {
        std::ostringstream line;
        line << what << ": status 0x" << std::hex << status;
        Fail(line.str(), exit_code);
    }
}

/* One line to the other program: a word, then numbers. */
inline void
Say(const std::string &word, const std::vector<uint64_t> &numbers = {})
{
    std::cout << word;
    for (uint64_t number : numbers) {
        std::cout << " " << number;
    }
    std::cout << std::endl;
}

/* Waits for the line that begins with `word` and returns its numbers. */
inline std::vector<uint64_t>
Hear(const std::string &word)
{
    std::string line;
    if (!std::getline(std::cin, line)) {
        Fail("the other program went away before it said \"" + word + "\"");
    }
    std::istringstream stream(line);
    std::string first;
    stream >> first;
    if (first != word) {
        Fail("heard \"" + line + "\" instead of \"" + word + "\"");
    }
    std::vector<uint64_t> numbers;
    for (uint64_t number; stream >> number;) {
        numbers.push_back(number);
    }
    return numbers;
}

/* "127.0.0.1:26000" or, for a source address, "127.0.0.1", which means any port. */
inline llm_datadist::IpInfo
ParseAddress(const std::string &text)
{
    const size_t colon = text.find(':');
    llm_datadist::IpInfo info;
    info.ip = text.substr(0, colon).c_str();
    if (colon != std::string::npos) {
        info.port = static_cast<uint16_t>(std::strtoul(text.c_str() + colon + 1, nullptr, 10));
    }
    return info;
}

/* Half-precision blocks: shape[0] counts blocks, the rest is one block. */
inline llm_datadist::CacheDesc
PagedCacheDesc()
{
    llm_datadist::CacheDesc desc;
    desc.num_tensors = 2 * kLayers;
    desc.data_type = llm_datadist::DT_FLOAT16;
    desc.shape = {kBlocks, kTokensPerBlock, kHeads, kHeadSize};
    return desc;
}

constexpr size_t kWordsPerBlock = static_cast<size_t>(kTokensPerBlock * kHeads * kHeadSize);

inline uint16_t *
BlockOf(const Cache &cache, size_t tensor, uint64_t block)
{
    return reinterpret_cast<uint16_t *>(cache.tensor_addrs.at(tensor)) + block * kWordsPerBlock;
}

/* What a model would compute for the `position`th block of the prompt: here, numbers that are
 * different for every tensor, position and word, so that nothing can be mixed up unnoticed. */
inline uint16_t
Computed(uint64_t seed, size_t tensor, size_t position, size_t word)
{
    uint64_t x = (((seed * 131 + tensor) * 1031 + position) << 20 | word) * 0x9E3779B97F4A7C15U;
    return static_cast<uint16_t>(x >> 48);
}

/* Fills the given blocks of both tensors of one layer. */
inline void
ComputeLayer(const Cache &cache, size_t layer, const std::vector<uint64_t> &blocks, uint64_t seed)
{
    for (size_t tensor = 2 * layer; tensor < 2 * layer + 2; tensor++) {
        for (size_t position = 0; position < blocks.size(); position++) {
            uint16_t *words = BlockOf(cache, tensor, blocks[position]);
            for (size_t word = 0; word < kWordsPerBlock; word++) {
                words[word] = Computed(seed, tensor, position, word);
            }
        }
    }
}

/* Fills whole blocks with a value that no test of arrival takes for data by accident. */
inline void
Clear(const Cache &cache)
{
    for (size_t tensor = 0; tensor < cache.tensor_addrs.size(); tensor++) {
        for (int64_t block = 0; block < kBlocks; block++) {
            uint16_t *words = BlockOf(cache, tensor, static_cast<uint64_t>(block));
            for (size_t word = 0; word < kWordsPerBlock; word++) {
                words[word] = 0xDEAD;
            }
        }
    }
}

/* Ends the program unless the given blocks hold what ComputeLayer wrote and all others are clear. */
inline void
Verify(const Cache &cache, const std::vector<uint64_t> &blocks, uint64_t seed)
{
    for (size_t tensor = 0; tensor < cache.tensor_addrs.size(); tensor++) {
        std::vector<size_t> position_of(static_cast<size_t>(kBlocks), SIZE_MAX);
        for (size_t position = 0; position < blocks.size(); position++) {
            position_of.at(blocks[position]) = position;
        }
        for (size_t block = 0; block < position_of.size(); block++) {
            const uint16_t *words = BlockOf(cache, tensor, block);
            for (size_t word = 0; word < kWordsPerBlock; word++) {
                const uint16_t expected = position_of[block] == SIZE_MAX
                                              ? uint16_t{0xDEAD}
                                              : Computed(seed, tensor, position_of[block], word);
                if (words[word] != expected) {
                    std::ostringstream line;
                    line << "tensor " << tensor << " block " << block << " word " << word << ": "
                         << words[word] << " instead of " << expected;
                    Fail(line.str());
                }
            }
        }
    }
}

} // namespace example

#endif
