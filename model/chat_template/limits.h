// What a chat template and one rendering of it may use at most. A template
// comes from a checkpoint and the messages from clients: neither is trusted.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_LIMITS_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_LIMITS_H_

#include <cstddef>
#include <cstdint>

namespace troupe::jinja {

// Of a template's source.
inline constexpr size_t kMaxTemplateBytes = size_t{1} << 20;
// Brackets and blocks open at once in the source.
inline constexpr int kMaxNesting = 100;
// Levels of an expression's tree: a + b + c has two, without any bracket.
inline constexpr int kMaxExpressionHeight = 200;

// Of one rendering. A step is a statement, a part of an expression, an item of
// a list that is walked, or kBytesPerStep bytes of text that are looked at.
inline constexpr int64_t kMaxSteps = 4'000'000;
inline constexpr size_t kBytesPerStep = 256;
// Statements and expressions inside one another, macro calls included.
inline constexpr int kMaxDepth = 600;
// All texts, lists and dicts that a rendering ever makes, its input included.
inline constexpr size_t kMaxHeapBytes = size_t{64} << 20;
inline constexpr size_t kMaxOutputBytes = size_t{8} << 20;

// Lists and dicts inside one another: of the input, and of what is printed or
// compared.
inline constexpr int kMaxInputDepth = 64;
inline constexpr int kMaxValueDepth = 100;
// Items of range(), as in Jinja's sandbox.
inline constexpr int64_t kMaxRange = 100'000;

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_LIMITS_H_
