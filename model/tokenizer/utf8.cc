#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {

// Table 3-7 of the Unicode standard, "Well-Formed UTF-8 Byte Sequences".
Utf8Step NextUtf8(absl::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {Utf8Step::kCharacter, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Step::kInvalid, 1, 0};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t code_point = lead & (0xFF >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Step::kIncomplete, i, 0};
    uint8_t low = 0x80;
    uint8_t high = 0xBF;
    if (i == 1) {
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (at(i) < low || at(i) > high) return {Utf8Step::kInvalid, i, 0};
    code_point = code_point << 6 | (at(i) & 0x3F);
  }
  return {Utf8Step::kCharacter, length, code_point};
}

size_t FindInvalidUtf8(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Step step = NextUtf8(text.substr(at));
    if (step.kind != Utf8Step::kCharacter) return at;
    at += step.num_bytes;
  }
  return text.size();
}

void AppendUtf8(char32_t code_point, std::string* text) {
  const auto put = [text](char32_t byte) {
    text->push_back(static_cast<char>(byte));
  };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

void LossyUtf8Stream::Append(absl::string_view bytes, std::string* text) {
  std::string joined;
  if (!held_.empty()) {
    joined = std::move(held_);
    held_.clear();
    joined.append(bytes.data(), bytes.size());
    bytes = joined;
  }
  while (!bytes.empty()) {
    const Utf8Step step = NextUtf8(bytes);
    if (step.kind == Utf8Step::kIncomplete) {
      held_.assign(bytes.data(), bytes.size());
      return;
    }
    if (step.kind == Utf8Step::kCharacter) {
      text->append(bytes.data(), step.num_bytes);
    } else {
      text->append(kReplacementCharacter);
    }
    bytes.remove_prefix(step.num_bytes);
  }
}

void LossyUtf8Stream::Finish(std::string* text) {
  if (!held_.empty()) text->append(kReplacementCharacter);
  held_.clear();
}

}  // namespace troupe::tokenizer
