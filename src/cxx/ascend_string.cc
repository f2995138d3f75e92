/*
 * ascend_string.cc - ge::AscendString, a shared immutable text.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * Whatever looks at the std::string lives here and not in the header: a program that was built with
 * the other std::string of libstdc++ only ever touches the shared_ptr's counter.
 */
#include "llm_datadist/ge_types.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace ge {

namespace {

/* A null pointer is the empty text; so is a text for which there is no memory, since a constructor
 * that must not throw has no other way to answer. */
std::shared_ptr<std::string>
MakeText(const char *text, size_t length) noexcept
{
    if (text == nullptr || length == 0) {
        return nullptr;
    }
    try {
        return std::make_shared<std::string>(text, length);
    } catch (...) {
        return nullptr;
    }
}

int
Compare(const AscendString &a, const AscendString &b)
{
    const size_t a_length = a.GetLength();
    const size_t b_length = b.GetLength();
    const int order = std::memcmp(a.GetString(), b.GetString(), std::min(a_length, b_length));
    if (order != 0 || a_length == b_length) {
        return order;
    }
    return a_length < b_length ? -1 : 1;
}

} // namespace

AscendString::AscendString(const char *text)
    : text_(MakeText(text, text == nullptr ? 0 : std::strlen(text)))
{
}

AscendString::AscendString(const char *text, size_t length) : text_(MakeText(text, length))
{
}

const char *
AscendString::GetString() const
{
    return text_ == nullptr ? "" : text_->c_str();
}

size_t
AscendString::GetLength() const
{
    return text_ == nullptr ? 0 : text_->size();
}

size_t
AscendString::Find(const AscendString &part) const
{
    if (text_ == nullptr || part.text_ == nullptr) {
        return part.text_ == nullptr ? 0 : std::string::npos;
    }
    return text_->find(*part.text_);
}

/* FNV-1a.  std::hash<std::string> would do, but then two libraries of one process could disagree. */
size_t
AscendString::Hash() const
{
    uint64_t hash = 0xCBF29CE484222325U;
    const char *text = GetString();
    for (size_t i = 0; i < GetLength(); i++) {
        hash = (hash ^ static_cast<unsigned char>(text[i])) * 0x100000001B3U;
    }
    return static_cast<size_t>(hash);
}

bool
AscendString::operator<(const AscendString &other) const
{
    return Compare(*this, other) < 0;
}

bool
AscendString::operator>(const AscendString &other) const
{
    return Compare(*this, other) > 0;
}

bool
AscendString::operator<=(const AscendString &other) const
{
    return Compare(*this, other) <= 0;
}

bool
AscendString::operator>=(const AscendString &other) const
{
    return Compare(*this, other) >= 0;
}

bool
AscendString::operator==(const AscendString &other) const
{
    return Compare(*this, other) == 0;
}

bool
AscendString::operator!=(const AscendString &other) const
{
    return Compare(*this, other) != 0;
}

/* A text with a zero inside is equal to no C string. */
bool
AscendString::operator==(const char *text) const
{
    const size_t length = text == nullptr ? 0 : std::strlen(text);
    return length == GetLength() &&
           std::memcmp(GetString(), text == nullptr ? "" : text, length) == 0;
}

bool
AscendString::operator!=(const char *text) const
{
    return !(*this == text);
}

} // namespace ge
