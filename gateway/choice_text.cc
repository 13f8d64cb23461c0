#include "gateway/choice_text.h"

#include <algorithm>

namespace troupe {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";
// A character has at most four bytes, a token at least one, and one token
// more keeps the decoder from seeing a start of text.
constexpr size_t kContextTokens = 8;

// Length of the sequence that a lead byte announces, and the range of its
// second byte (Unicode standard, table 3-7); 0 for no lead byte.
struct Lead {
  size_t length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
};

Lead ReadLead(unsigned char byte) {
  if (byte < 0x80) return {.length = 1};
  if (byte >= 0xC2 && byte <= 0xDF) return {.length = 2};
  if (byte == 0xE0) return {.length = 3, .low = 0xA0};
  if (byte == 0xED) return {.length = 3, .high = 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {.length = 3};
  if (byte == 0xF0) return {.length = 4, .low = 0x90};
  if (byte >= 0xF1 && byte <= 0xF3) return {.length = 4};
  if (byte == 0xF4) return {.length = 4, .high = 0x8F};
  return {};
}

}  // namespace

ChoiceText::ChoiceText(const Tokenizer& tokenizer,
                       const ChoiceTextOptions& options,
                       absl::Span<const uint32_t> prompt_token_ids)
    : include_stop_(options.include_stop),
      min_tokens_(options.min_tokens),
      decoder_(tokenizer,
               {.skip_special_tokens = !options.keep_special_tokens}),
      matcher_(options.stop) {
  const size_t skip = prompt_token_ids.size() -
                      std::min(prompt_token_ids.size(), kContextTokens);
  for (const uint32_t token_id : prompt_token_ids.subspan(skip)) {
    decoder_.Append(static_cast<int32_t>(token_id));
  }
}

ChoiceText::Delta ChoiceText::Append(uint32_t token_id) {
  ++num_tokens_;
  std::string text = decoder_.Append(static_cast<int32_t>(token_id));
  if (num_tokens_ >= min_tokens_) return Search(text);
  Delta delta;
  delta.text = std::move(text);
  return delta;
}

ChoiceText::Delta ChoiceText::Finish() {
  Delta delta = Search(decoder_.Finish());
  if (!delta.stopped) delta.text += matcher_.Flush();
  return delta;
}

ChoiceText::Delta ChoiceText::Search(const std::string& text) {
  StopMatcher::Result result = matcher_.Append(text);
  Delta delta;
  delta.text = std::move(result.text);
  if (result.stop != nullptr) {
    delta.stopped = true;
    delta.stop = *result.stop;
    if (include_stop_) delta.text += *result.stop;
  }
  return delta;
}

std::string TokenText(const Tokenizer& tokenizer, uint32_t token_id) {
  return ToValidUtf8(tokenizer.TokenBytes(static_cast<int32_t>(token_id)));
}

std::string ToValidUtf8(const std::string& bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    const Lead lead = ReadLead(static_cast<unsigned char>(bytes[i]));
    size_t length = 1;
    while (length < lead.length && i + length < bytes.size()) {
      const auto next = static_cast<unsigned char>(bytes[i + length]);
      const unsigned char low = length == 1 ? lead.low : 0x80;
      const unsigned char high = length == 1 ? lead.high : 0xBF;
      if (next < low || next > high) break;
      ++length;
    }
    if (length == lead.length) {
      text.append(bytes, i, length);
    } else {
      text += kReplacement;
    }
    i += length;
  }
  return text;
}

}  // namespace troupe
