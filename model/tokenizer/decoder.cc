#include "model/tokenizer/decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/normalizer.h"

namespace troupe::tokenizer {
namespace {

constexpr int64_t kMaxStrip = 1024;

bool IsOneCharacter(absl::string_view text) {
  return !text.empty() && NextUtf8(text).kind == Utf8Step::kCharacter &&
         NextUtf8(text).num_bytes == text.size();
}

// How many times in a row `text` has `content` at its start, up to `max`.
size_t CountAtStart(absl::string_view text, absl::string_view content,
                    size_t max) {
  size_t count = 0;
  while (count < max && absl::ConsumePrefix(&text, content)) ++count;
  return count;
}

size_t CountAtEnd(absl::string_view text, absl::string_view content,
                  size_t max) {
  size_t count = 0;
  while (count < max && absl::ConsumeSuffix(&text, content)) ++count;
  return count;
}

// The characters that a run of bytes stands for; when they are not UTF-8
// altogether, one U+FFFD for each byte. So a later byte can change what an
// earlier one is, and a stream holds back a run until it ends.
std::string BytesToText(const std::string& bytes) {
  if (FindInvalidUtf8(bytes) == bytes.size()) return bytes;
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) text += kReplacementCharacter;
  return text;
}

}  // namespace

std::optional<char> ParseByteToken(absl::string_view token) {
  uint32_t byte;
  if (token.size() != 6 || !absl::StartsWith(token, "<0x") || token[5] != '>' ||
      !absl::ascii_isxdigit(token[3]) || !absl::ascii_isxdigit(token[4]) ||
      !absl::SimpleHexAtoi(token.substr(3, 2), &byte)) {
    return std::nullopt;
  }
  return static_cast<char>(byte);
}

absl::StatusOr<Decoder> Decoder::Parse(const std::optional<JsonValue>& value) {
  Decoder decoder;
  if (value) {
    ABSL_RETURN_IF_ERROR(decoder.Add(*value));
  } else {
    decoder.steps_.emplace_back().kind = Step::kSpaces;
  }
  return decoder;
}

absl::Status Decoder::Add(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const std::string type, value.GetString("type"));
  if (type == "Sequence") {
    ABSL_ASSIGN_OR_RETURN(const std::vector<JsonValue> members,
                          value.GetArray("decoders"));
    for (const JsonValue& member : members) {
      ABSL_RETURN_IF_ERROR(Add(member));
    }
    return absl::OkStatus();
  }
  if (type == "Fuse") {
    if (!fused_from_) fused_from_ = steps_.size();
    return absl::OkStatus();
  }
  Step step;
  bool sees_texts = false;  // works after Fuse
  if (type == "ByteLevel") {
    step.kind = Step::kByteLevel;
  } else if (type == "ByteFallback") {
    step.kind = Step::kByteFallback;
  } else if (type == "Metaspace") {
    step.kind = Step::kMetaspace;
    ABSL_ASSIGN_OR_RETURN(step.content, value.GetString("replacement"));
    if (!IsOneCharacter(step.content)) {
      return value.Error("replacement is not one character");
    }
    ABSL_ASSIGN_OR_RETURN(const bool add,
                          value.GetBool("add_prefix_space", true));
    step.keep_first = !add;
    if (value.Find("prepend_scheme")) {
      ABSL_ASSIGN_OR_RETURN(const std::string scheme,
                            value.GetString("prepend_scheme"));
      step.keep_first = scheme == "never";
    }
  } else if (type == "Replace") {
    step.kind = Step::kReplace;
    ABSL_ASSIGN_OR_RETURN(step.content, value.GetString("content"));
    ABSL_ASSIGN_OR_RETURN(const JsonValue pattern, value.Get("pattern"));
    ABSL_ASSIGN_OR_RETURN(step.regex, ParsePattern(pattern));
    if (step.regex == nullptr) return absl::OkStatus();
    // One character cannot be split between two parts of a text.
    const std::optional<JsonValue> literal = pattern.Find("String");
    sees_texts = literal && IsOneCharacter(literal->json().get<std::string>());
  } else if (type == "Strip") {
    step.kind = Step::kStrip;
    ABSL_ASSIGN_OR_RETURN(step.content, value.GetString("content"));
    if (!IsOneCharacter(step.content)) {
      return value.Error("content is not one character");
    }
    ABSL_ASSIGN_OR_RETURN(const int64_t start,
                          value.GetInt("start", 0, kMaxStrip));
    ABSL_ASSIGN_OR_RETURN(const int64_t stop,
                          value.GetInt("stop", 0, kMaxStrip));
    step.num_start = static_cast<size_t>(start);
    step.num_end = static_cast<size_t>(stop);
    sees_texts = true;
  } else {
    return value.Unsupported(absl::StrCat("decoder \"", type, "\""));
  }
  if (fused_from_ && !sees_texts) {
    return value.Unsupported(
        absl::StrCat("decoder \"", type, "\" after Fuse or ByteLevel"));
  }
  const bool fuses = step.kind == Step::kByteLevel;
  steps_.push_back(std::move(step));
  if (fuses) fused_from_ = steps_.size();
  return absl::OkStatus();
}

std::string Decoder::TokenBytes(absl::string_view token) const {
  std::string bytes(token);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Step::kByteLevel: {
        std::string decoded;
        if (AppendFromByteLevel(bytes, &decoded)) bytes = std::move(decoded);
        return bytes;
      }
      case Step::kByteFallback:
        if (const auto byte = ParseByteToken(bytes)) {
          return std::string(1, *byte);
        }
        break;
      case Step::kMetaspace:
        bytes = absl::StrReplaceAll(bytes, {{step.content, " "}});
        break;
      case Step::kReplace: {
        auto replaced = ReplaceAll(*step.regex, step.content, bytes);
        if (replaced.ok()) bytes = *std::move(replaced);
        break;
      }
      case Step::kStrip:
      case Step::kSpaces:
        break;
    }
  }
  return bytes;
}

Decoder::Stream::Stream(const Decoder& decoder)
    : decoder_(decoder), states_(decoder.steps_.size()) {}

void Decoder::Stream::Append(absl::string_view token, std::string* text) {
  RunTokenSteps(0, std::string(token), text);
}

void Decoder::Stream::RunTokenSteps(size_t first, std::string token,
                                    std::string* text) {
  const size_t end = decoder_.fused_from_.value_or(decoder_.steps_.size());
  for (size_t i = first; i < end; ++i) {
    const Step& step = decoder_.steps_[i];
    StepState& state = states_[i];
    switch (step.kind) {
      case Step::kReplace: {
        // A match that takes too many steps leaves the token as it is.
        auto replaced = ReplaceAll(*step.regex, step.content, token);
        if (replaced.ok()) token = *std::move(replaced);
        break;
      }
      case Step::kByteFallback:
        if (const auto byte = ParseByteToken(token)) {
          state.held.push_back(*byte);
          return;
        }
        FlushBytes(i, text);
        break;
      case Step::kStrip: {
        const size_t size = step.content.size();
        token.erase(0,
                    size * CountAtStart(token, step.content, step.num_start));
        token.resize(token.size() -
                     size * CountAtEnd(token, step.content, step.num_end));
        break;
      }
      case Step::kMetaspace: {
        const bool keep = state.started || step.keep_first;
        token = absl::StrReplaceAll(token, {{step.content, keep ? " " : ""}});
        break;
      }
      case Step::kByteLevel: {
        std::string decoded;
        if (!AppendFromByteLevel(token, &decoded)) decoded = token;
        token.clear();
        bytes_.Append(decoded, &token);
        break;
      }
      case Step::kSpaces:
        if (state.started) token = absl::StrCat(" ", token);
        break;
    }
    state.started = true;
  }
  RunTextSteps(end, std::move(token), text);
}

void Decoder::Stream::FlushBytes(size_t step, std::string* text) {
  StepState& state = states_[step];
  if (state.held.empty()) return;
  std::string characters = BytesToText(state.held);
  state.held.clear();
  state.started = true;
  RunTokenSteps(step + 1, std::move(characters), text);
}

// Strips a text that comes in parts: what may be its end is held back.
std::string Decoder::Stream::StripPart(size_t index, std::string part) {
  const Step& step = decoder_.steps_[index];
  StepState& state = states_[index];
  const size_t size = step.content.size();
  if (state.stripping) {
    const size_t count =
        CountAtStart(part, step.content, step.num_start - state.num_stripped);
    part.erase(0, count * size);
    state.num_stripped += count;
    state.stripping = part.empty() && state.num_stripped < step.num_start;
  }
  state.held += part;
  const size_t keep = size * CountAtEnd(state.held, step.content, step.num_end);
  std::string ready = state.held.substr(0, state.held.size() - keep);
  state.held.erase(0, ready.size());
  return ready;
}

void Decoder::Stream::RunTextSteps(size_t first, std::string part,
                                   std::string* text) {
  for (size_t i = first; i < decoder_.steps_.size(); ++i) {
    const Step& step = decoder_.steps_[i];
    if (step.kind == Step::kStrip) {
      part = StripPart(i, std::move(part));
    } else if (auto replaced = ReplaceAll(*step.regex, step.content, part);
               replaced.ok()) {
      part = *std::move(replaced);
    }
  }
  text->append(part);
}

void Decoder::Stream::Finish(std::string* text) {
  const size_t end = decoder_.fused_from_.value_or(decoder_.steps_.size());
  for (size_t i = 0; i < end; ++i) {
    if (decoder_.steps_[i].kind == Step::kByteFallback) FlushBytes(i, text);
  }
  std::string rest;
  bytes_.Finish(&rest);
  RunTextSteps(end, std::move(rest), text);
}

}  // namespace troupe::tokenizer
