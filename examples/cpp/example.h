/*
 * example.h - what the C++ examples share and what has nothing to do with KV caches.
 *
 * Two programs of a pair talk to each other as a router talks to engines, in lines of text: what a
 * program has to say goes to standard output, what it is told comes from standard input.  What a
 * human reads goes to standard error.  So a pair runs like this
 *
 *     mkfifo back
 *     ./pull_prompt 127.0.0.1:26000 <back | ./pull_decoder 127.0.0.1:26000 0.0.0.0 >back
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
#include <cstring>
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
constexpr int64_t kHeads = 2;
constexpr int64_t kHeadSize = 32;

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

/* "127.0.0.1:26000" or, for a source address, "0.0.0.0". */
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
inline std::vector<uint16_t>
ComputedBlock(uint64_t seed, size_t tensor, size_t position)
{
    std::vector<uint16_t> words(kWordsPerBlock);
    for (size_t word = 0; word < kWordsPerBlock; word++) {
        const uint64_t where = ((seed * 131 + tensor) * 1031 + position) << 20 | word;
        words[word] = static_cast<uint16_t>((where * 0x9E3779B97F4A7C15U) >> 48);
    }
    return words;
}

/* What is in a block that nobody wrote to: nothing that could be taken for data by accident. */
inline std::vector<uint16_t>
ClearBlock()
{
    return std::vector<uint16_t>(kWordsPerBlock, uint16_t{0xDEAD});
}

inline void
WriteBlock(const Cache &cache, size_t tensor, uint64_t block, const std::vector<uint16_t> &words)
{
    std::memcpy(BlockOf(cache, tensor, block), words.data(), kWordsPerBlock * sizeof(uint16_t));
}

inline void
Clear(const Cache &cache)
{
    for (size_t tensor = 0; tensor < cache.tensor_addrs.size(); tensor++) {
        for (uint64_t block = 0; block < kBlocks; block++) {
            WriteBlock(cache, tensor, block, ClearBlock());
        }
    }
}

/* Fills the given blocks of both tensors of one layer. */
inline void
ComputeLayer(const Cache &cache, size_t layer, const std::vector<uint64_t> &blocks, uint64_t seed)
{
    for (size_t tensor = 2 * layer; tensor < 2 * layer + 2; tensor++) {
        for (size_t position = 0; position < blocks.size(); position++) {
            WriteBlock(cache, tensor, blocks[position], ComputedBlock(seed, tensor, position));
        }
    }
}

/* Ends the program unless the given blocks hold what ComputeLayer wrote and all others are clear. */
inline void
Verify(const Cache &cache, const std::vector<uint64_t> &blocks, uint64_t seed)
{
    for (size_t tensor = 0; tensor < cache.tensor_addrs.size(); tensor++) {
        std::vector<std::vector<uint16_t>> expected(kBlocks, ClearBlock());
        for (size_t position = 0; position < blocks.size(); position++) {
            expected.at(blocks[position]) = ComputedBlock(seed, tensor, position);
        }
        for (uint64_t block = 0; block < kBlocks; block++) {
            if (std::memcmp(BlockOf(cache, tensor, block), expected[block].data(),
                            kWordsPerBlock * sizeof(uint16_t)) != 0) {
                Fail("tensor " + std::to_string(tensor) + " block " + std::to_string(block) +
                     " holds other data than expected");
            }
        }
    }
}

} // namespace example

#endif
