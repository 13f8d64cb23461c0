#include "model/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status_macros.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {
namespace {

// The pattern that a ByteLevel pre-tokenizer applies with use_regex: GPT-2's.
constexpr char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
    R"(|\s+(?!\S)|\s+)";

// A part of a piece, which a pattern matches or not.
struct Part {
  ByteRange range;
  bool is_match;
};

// Joins parts to pieces. `matches` cover a whole piece, in order.
void JoinParts(SplitBehavior behavior, std::vector<Part>* parts,
               std::vector<ByteRange>* ranges) {
  const size_t first = ranges->size();
  const bool backwards = behavior == SplitBehavior::kMergedWithNext;
  if (backwards) std::reverse(parts->begin(), parts->end());
  bool previous_match = false;
  for (const Part& part : *parts) {
    bool join = false;
    switch (behavior) {
      case SplitBehavior::kRemoved:
        if (part.is_match) continue;
        break;
      case SplitBehavior::kIsolated:
        break;
      case SplitBehavior::kContiguous:
        join = part.is_match == previous_match;
        break;
      case SplitBehavior::kMergedWithPrevious:
      case SplitBehavior::kMergedWithNext:
        join = part.is_match && !previous_match;
        break;
    }
    previous_match = part.is_match;
    if (join && ranges->size() > first) {
      if (backwards) {
        ranges->back().begin = part.range.begin;
      } else {
        ranges->back().end = part.range.end;
      }
    } else {
      ranges->push_back(part.range);
    }
  }
  if (backwards) std::reverse(ranges->begin() + first, ranges->end());
  ranges->erase(
      std::remove_if(ranges->begin() + first, ranges->end(),
                     [](const ByteRange& r) { return r.begin == r.end; }),
      ranges->end());
}

class SplitStep final : public PreTokenizer::Step {
 public:
  SplitStep(std::unique_ptr<const Regex> regex, SplitBehavior behavior,
            bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}

  absl::Status Apply(Pieces* pieces) const override {
    std::vector<ByteRange> ranges;
    std::vector<ByteRange> matches;
    std::vector<Part> parts;
    for (const ByteRange& piece : pieces->ranges) {
      matches.clear();
      ABSL_RETURN_IF_ERROR(regex_->FindAll(piece.Of(pieces->text), &matches));
      parts.clear();
      uint32_t at = piece.begin;
      for (const ByteRange& match : matches) {
        const ByteRange range = {piece.begin + match.begin,
                                 piece.begin + match.end};
        if (at != range.begin) parts.push_back({{at, range.begin}, invert_});
        parts.push_back({range, !invert_});
        at = range.end;
      }
      if (at != piece.end) parts.push_back({{at, piece.end}, invert_});
      const size_t count = ranges.size();
      JoinParts(behavior_, &parts, &ranges);
      if (count == 0 && !ranges.empty()) {
        pieces->at_start &= ranges.front().begin == pieces->ranges[0].begin;
      }
    }
    pieces->ranges = std::move(ranges);
    return absl::OkStatus();
  }

 private:
  const std::unique_ptr<const Regex> regex_;
  const SplitBehavior behavior_;
  const bool invert_;
};

class ByteLevelStep final : public PreTokenizer::Step {
 public:
  ByteLevelStep(bool add_prefix_space, std::unique_ptr<const SplitStep> split)
      : add_prefix_space_(add_prefix_space), split_(std::move(split)) {}

  absl::Status Apply(Pieces* pieces) const override {
    if (add_prefix_space_) {
      Rewrite(pieces, [](absl::string_view piece, std::string* text) {
        if (piece[0] != ' ') text->push_back(' ');
        absl::StrAppend(text, piece);
      });
    }
    if (split_ != nullptr) ABSL_RETURN_IF_ERROR(split_->Apply(pieces));
    Rewrite(pieces, AppendByteLevel);
    return absl::OkStatus();
  }

  // Replaces each piece by what `append` makes of it.
  template <typename Append>
  static void Rewrite(Pieces* pieces, Append append) {
    std::string text;
    for (ByteRange& range : pieces->ranges) {
      const auto begin = static_cast<uint32_t>(text.size());
      append(range.Of(pieces->text), &text);
      range = {begin, static_cast<uint32_t>(text.size())};
    }
    pieces->text = std::move(text);
  }

 private:
  const bool add_prefix_space_;
  const std::unique_ptr<const SplitStep> split_;
};

enum class PrependScheme { kAlways, kFirst, kNever };

class MetaspaceStep final : public PreTokenizer::Step {
 public:
  MetaspaceStep(std::string replacement, PrependScheme scheme,
                std::unique_ptr<const SplitStep> split)
      : replacement_(std::move(replacement)),
        scheme_(scheme),
        split_(std::move(split)) {}

  absl::Status Apply(Pieces* pieces) const override {
    bool prepend = scheme_ == PrependScheme::kAlways ||
                   (scheme_ == PrependScheme::kFirst && pieces->at_start);
    ByteLevelStep::Rewrite(
        pieces, [&](absl::string_view piece, std::string* text) {
          const std::string replaced =
              absl::StrReplaceAll(piece, {{" ", replacement_}});
          if (prepend && !absl::StartsWith(replaced, replacement_)) {
            text->append(replacement_);
          }
          text->append(replaced);
          if (scheme_ == PrependScheme::kFirst) prepend = false;
        });
    return split_ == nullptr ? absl::OkStatus() : split_->Apply(pieces);
  }

 private:
  const std::string replacement_;
  const PrependScheme scheme_;
  const std::unique_ptr<const SplitStep> split_;
};

absl::StatusOr<std::unique_ptr<const SplitStep>> MakeSplit(
    const char* pattern, SplitBehavior behavior) {
  ABSL_ASSIGN_OR_RETURN(auto regex, Regex::Compile(pattern));
  return std::make_unique<const SplitStep>(std::move(regex), behavior, false);
}

absl::StatusOr<SplitBehavior> ParseBehavior(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const std::string name, value.GetString("behavior"));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return value.Unsupported(absl::StrCat("behavior \"", name, "\""));
}

using StepOr = absl::StatusOr<std::unique_ptr<const PreTokenizer::Step>>;

// Null: nothing to do.
StepOr ParseSplit(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const JsonValue pattern, value.Get("pattern"));
  ABSL_ASSIGN_OR_RETURN(auto regex, ParsePattern(pattern));
  ABSL_ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(value));
  ABSL_ASSIGN_OR_RETURN(const bool invert, value.GetBool("invert", false));
  if (regex == nullptr) return nullptr;
  return std::make_unique<const SplitStep>(std::move(regex), behavior, invert);
}

StepOr ParseByteLevel(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const bool add_prefix_space,
                        value.GetBool("add_prefix_space", true));
  ABSL_ASSIGN_OR_RETURN(const bool use_regex, value.GetBool("use_regex", true));
  std::unique_ptr<const SplitStep> split;
  if (use_regex) {
    ABSL_ASSIGN_OR_RETURN(split,
                          MakeSplit(kGpt2Pattern, SplitBehavior::kIsolated));
  }
  return std::make_unique<const ByteLevelStep>(add_prefix_space,
                                               std::move(split));
}

StepOr ParseDigits(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const bool individual,
                        value.GetBool("individual_digits", false));
  ABSL_ASSIGN_OR_RETURN(
      std::unique_ptr<const PreTokenizer::Step> step,
      MakeSplit(R"(\p{N})", individual ? SplitBehavior::kIsolated
                                       : SplitBehavior::kContiguous));
  return step;
}

absl::StatusOr<PrependScheme> ParseScheme(const JsonValue& value) {
  if (!value.Find("prepend_scheme")) {
    // Older files have the boolean alone.
    ABSL_ASSIGN_OR_RETURN(const bool add,
                          value.GetBool("add_prefix_space", true));
    return add ? PrependScheme::kAlways : PrependScheme::kNever;
  }
  ABSL_ASSIGN_OR_RETURN(const std::string name,
                        value.GetString("prepend_scheme"));
  if (name == "always") return PrependScheme::kAlways;
  if (name == "first") return PrependScheme::kFirst;
  if (name == "never") return PrependScheme::kNever;
  return value.Unsupported(absl::StrCat("prepend_scheme \"", name, "\""));
}

StepOr ParseMetaspace(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const std::string replacement,
                        value.GetString("replacement"));
  ABSL_ASSIGN_OR_RETURN(const PrependScheme scheme, ParseScheme(value));
  ABSL_ASSIGN_OR_RETURN(const bool use_split, value.GetBool("split", true));
  const Utf8Step character =
      replacement.empty() ? Utf8Step{} : NextUtf8(replacement);
  if (character.num_bytes != replacement.size() || replacement.empty()) {
    return value.Error("replacement is not one character");
  }
  std::unique_ptr<const SplitStep> split;
  if (use_split) {
    ABSL_ASSIGN_OR_RETURN(auto regex, Regex::Literal(replacement));
    split = std::make_unique<const SplitStep>(
        std::move(regex), SplitBehavior::kMergedWithNext, false);
  }
  return std::make_unique<const MetaspaceStep>(replacement, scheme,
                                               std::move(split));
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(
    const std::optional<JsonValue>& value) {
  PreTokenizer pre_tokenizer;
  if (value) ABSL_RETURN_IF_ERROR(pre_tokenizer.Add(*value));
  return pre_tokenizer;
}

absl::Status PreTokenizer::Add(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const std::string type, value.GetString("type"));
  if (type == "Sequence") {
    ABSL_ASSIGN_OR_RETURN(const std::vector<JsonValue> members,
                          value.GetArray("pretokenizers"));
    for (const JsonValue& member : members) {
      ABSL_RETURN_IF_ERROR(Add(member));
    }
    return absl::OkStatus();
  }
  StepOr step = type == "Split"       ? ParseSplit(value)
                : type == "ByteLevel" ? ParseByteLevel(value)
                : type == "Digits"    ? ParseDigits(value)
                : type == "Metaspace" ? ParseMetaspace(value)
                                      : StepOr(value.Unsupported(absl::StrCat(
                                            "pre-tokenizer \"", type, "\"")));
  ABSL_RETURN_IF_ERROR(step.status());
  if (*step != nullptr) steps_.push_back(*std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::Apply(Pieces* pieces) const {
  for (const auto& step : steps_) {
    ABSL_RETURN_IF_ERROR(step->Apply(pieces));
  }
  return absl::OkStatus();
}

}  // namespace troupe::tokenizer
