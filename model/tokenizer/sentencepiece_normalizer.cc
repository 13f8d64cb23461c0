#include "model/tokenizer/sentencepiece_normalizer.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {
namespace {

// Bounds what a text can grow to. The longest one of Unicode's compatibility
// decompositions has 33 bytes.
constexpr size_t kMaxReplacementBytes = 64;

uint32_t LittleEndian32(absl::string_view bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) {
    value = value << 8 | static_cast<uint8_t>(bytes[i]);
  }
  return value;
}

constexpr uint32_t Label(uint32_t unit) { return unit & (1u << 31 | 0xFF); }
constexpr uint32_t Offset(uint32_t unit) {
  return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}
constexpr bool HasValue(uint32_t unit) { return (unit & 1u << 8) != 0; }
constexpr uint32_t Value(uint32_t unit) { return unit & ~(1u << 31); }

}  // namespace

absl::StatusOr<SentencePieceNormalizer> SentencePieceNormalizer::Parse(
    const sentencepiece::Normalizer& proto, PrefixMatcher user_defined) {
  SentencePieceNormalizer normalizer;
  normalizer.add_dummy_prefix_ = proto.add_dummy_prefix();
  normalizer.remove_extra_whitespaces_ = proto.remove_extra_whitespaces();
  normalizer.escape_whitespaces_ = proto.escape_whitespaces();
  normalizer.user_defined_ = std::move(user_defined);
  if (!proto.replacements().empty()) {
    ABSL_RETURN_IF_ERROR(normalizer.ParseTable(proto.replacements()));
  }
  return normalizer;
}

absl::Status SentencePieceNormalizer::ParseTable(absl::string_view table) {
  const auto error = [](const char* what) {
    return absl::InvalidArgumentError(what);
  };
  if (table.size() < 4) return error("normalizer table: truncated");
  const uint32_t trie_bytes = LittleEndian32(table);
  table.remove_prefix(4);
  if (trie_bytes == 0 || trie_bytes % 4 != 0 || trie_bytes > table.size()) {
    return error("normalizer table: bad size of the trie");
  }
  trie_.reserve(trie_bytes / 4);
  for (size_t at = 0; at < trie_bytes; at += 4) {
    trie_.push_back(LittleEndian32(table.substr(at)));
  }
  replacements_ = std::string(table.substr(trie_bytes));
  if (replacements_.empty() || replacements_.back() != '\0') {
    return error("normalizer table: the replacements do not end with a zero");
  }
  if (FindInvalidUtf8(replacements_) != replacements_.size()) {
    return error("normalizer table: the replacements are not UTF-8");
  }
  size_t length = 0;
  for (const char c : replacements_) {
    length = c == '\0' ? 0 : length + 1;
    if (length > kMaxReplacementBytes) {
      return error("normalizer table: a replacement is too long");
    }
  }
  return absl::OkStatus();
}

SentencePieceNormalizer::Replacement SentencePieceNormalizer::FirstReplacement(
    absl::string_view text) const {
  if (const auto match = user_defined_.Find(text)) {
    return {text.substr(0, match->num_bytes), match->num_bytes};
  }
  const size_t character = NextUtf8(text).num_bytes;
  Replacement longest = {text.substr(0, character), character};
  if (trie_.empty()) return longest;
  // Every unit is checked before it is read: the table is not ours.
  size_t node = Offset(trie_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    node ^= static_cast<uint8_t>(text[i]);
    if (node >= trie_.size()) break;
    const uint32_t unit = trie_[node];
    if (Label(unit) != static_cast<uint8_t>(text[i])) break;
    node ^= Offset(unit);
    if (!HasValue(unit)) continue;
    if (node >= trie_.size()) break;
    const size_t at = Value(trie_[node]);
    // A key ends where a character does.
    const bool whole = i + 1 == text.size() ||
                       (static_cast<uint8_t>(text[i + 1]) & 0xC0) != 0x80;
    if (at < replacements_.size() && whole) {
      longest = {absl::string_view(replacements_.c_str() + at), i + 1};
    }
  }
  return longest;
}

std::string SentencePieceNormalizer::Apply(absl::string_view text) const {
  std::string result;
  if (remove_extra_whitespaces_) {
    while (!text.empty()) {
      const Replacement first = FirstReplacement(text);
      if (first.text != " ") break;
      text.remove_prefix(first.num_bytes);
    }
  }
  if (text.empty()) return result;
  const absl::string_view space = escape_whitespaces_ ? kSpaceSymbol : " ";
  if (add_dummy_prefix_) absl::StrAppend(&result, space);
  bool after_space = remove_extra_whitespaces_;
  while (!text.empty()) {
    Replacement first = FirstReplacement(text);
    text.remove_prefix(first.num_bytes);
    while (after_space && absl::ConsumePrefix(&first.text, " ")) {
    }
    for (const char c : first.text) {
      if (c == ' ') {
        absl::StrAppend(&result, space);
      } else {
        result.push_back(c);
      }
    }
    if (!first.text.empty()) {
      after_space =
          remove_extra_whitespaces_ && absl::EndsWith(first.text, " ");
    }
  }
  if (remove_extra_whitespaces_) {
    absl::string_view trimmed = result;
    while (absl::ConsumeSuffix(&trimmed, space)) {
    }
    result.resize(trimmed.size());
  }
  return result;
}

}  // namespace troupe::tokenizer
