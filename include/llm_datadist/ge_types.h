/*
 * ge_types.h - the few names of namespace `ge` that programs written for LLM-DataDist mention.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * C++ only.  ge::AscendString (option maps, addresses), ge::DataType (cache descriptions) and
 * ge::Status live here and nowhere else: llm_datadist.h takes its own names from this header, and
 * the old include lines (graph/types.h, external/ge_common/ge_api_types.h, ...) forward to it.
 *
 * ABI.  AscendString's layout is fixed: one std::shared_ptr<std::string>.  Everything that looks at
 * the text is out of line, so that a program may be built with either value of
 * _GLIBCXX_USE_CXX11_ABI, whatever the library was built with.
 */
#ifndef LLM_DATADIST_GE_TYPES_H
#define LLM_DATADIST_GE_TYPES_H

#ifndef __cplusplus
#error "ge_types.h is a C++ header; C programs include llm_datadist/llm_datadist.h"
#endif

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#if defined(__GNUC__)
#define LLM_DATADIST_EXPORT_ __attribute__((visibility("default")))
#else
#define LLM_DATADIST_EXPORT_
#endif

namespace ge {

using char_t = char;

using Status = uint32_t;
constexpr Status SUCCESS = 0U;
constexpr Status FAILED = 0xFFFFFFFFU;

using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0U;
constexpr graphStatus GRAPH_FAILED = 0xFFFFFFFFU;

/* An immutable string whose copies share one text.
 *
 * A default-constructed string, a null pointer and "" are the same text.  No member throws: where
 * memory for the text is missing the string is empty.  Distinct objects may be used from distinct
 * threads even if they share a text. */
class LLM_DATADIST_EXPORT_ AscendString {
public:
    AscendString() = default;
    /* Copies the text up to its zero; not explicit, so that option maps take literals. */
    AscendString(const char *text);
    /* Copies `length` bytes, zeros included. */
    AscendString(const char *text, size_t length);

    /* The text with a closing zero; valid while this object or a copy of it lives. */
    const char *GetString() const;
    /* Bytes, without the closing zero. */
    size_t GetLength() const;
    /* Where `part` first begins, or size_t(-1), which is std::string::npos. */
    size_t Find(const AscendString &part) const;
    /* Equal texts have equal hashes within a process. */
    size_t Hash() const;

    /* Byte order, as std::string compares. */
    bool operator<(const AscendString &other) const;
    bool operator>(const AscendString &other) const;
    bool operator<=(const AscendString &other) const;
    bool operator>=(const AscendString &other) const;
    bool operator==(const AscendString &other) const;
    bool operator!=(const AscendString &other) const;
    bool operator==(const char *text) const;
    bool operator!=(const char *text) const;

private:
    std::shared_ptr<std::string> text_;
};

/* Element types.  The numbers are ABI; 5 was never used.  The comment is the size of an element;
 * a tensor's bytes are rounded up once per tensor. */
enum DataType : int32_t {
    DT_FLOAT = 0,           /* 4 bytes */
    DT_FLOAT16 = 1,         /* 2 */
    DT_INT8 = 2,            /* 1 */
    DT_INT32 = 3,           /* 4 */
    DT_UINT8 = 4,           /* 1 */
    DT_INT16 = 6,           /* 2 */
    DT_UINT16 = 7,          /* 2 */
    DT_UINT32 = 8,          /* 4 */
    DT_INT64 = 9,           /* 8 */
    DT_UINT64 = 10,         /* 8 */
    DT_DOUBLE = 11,         /* 8 */
    DT_BOOL = 12,           /* 1 */
    DT_STRING = 13,         /* 16 */
    DT_DUAL_SUB_INT8 = 14,  /* 1 */
    DT_DUAL_SUB_UINT8 = 15, /* 1 */
    DT_COMPLEX64 = 16,      /* 8 */
    DT_COMPLEX128 = 17,     /* 16 */
    DT_QINT8 = 18,          /* 1 */
    DT_QINT16 = 19,         /* 2 */
    DT_QINT32 = 20,         /* 4 */
    DT_QUINT8 = 21,         /* 1 */
    DT_QUINT16 = 22,        /* 2 */
    DT_RESOURCE = 23,       /* 8 */
    DT_STRING_REF = 24,     /* 16 */
    DT_DUAL = 25,           /* 5 */
    DT_VARIANT = 26,        /* 8 */
    DT_BF16 = 27,           /* 2 */
    DT_UNDEFINED = 28,      /* no size */
    DT_INT4 = 29,           /* 4 bits */
    DT_UINT1 = 30,          /* 1 bit */
    DT_INT2 = 31,           /* 2 bits */
    DT_UINT2 = 32,          /* 2 bits */
    DT_COMPLEX32 = 33,      /* 4 bytes */
    DT_HIFLOAT8 = 34,       /* 1 */
    DT_FLOAT8_E5M2 = 35,    /* 1 */
    DT_FLOAT8_E4M3FN = 36,  /* 1 */
    DT_FLOAT8_E8M0 = 37,    /* 1 */
    DT_FLOAT6_E3M2 = 38,    /* 6 bits */
    DT_FLOAT6_E2M3 = 39,    /* 6 bits */
    DT_FLOAT4_E2M1 = 40,    /* 4 bits */
    DT_FLOAT4_E1M2 = 41,    /* 4 bits */
    DT_HIFLOAT4 = 42,       /* known by name only: no call accepts it */
    DT_MAX = 43             /* one past the last, not a type */
};

} // namespace ge

namespace std {

template <> struct hash<ge::AscendString> {
    size_t operator()(const ge::AscendString &text) const
    {
        return text.Hash();
    }
};

} // namespace std

#undef LLM_DATADIST_EXPORT_

#endif
