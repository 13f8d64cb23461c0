#include "model/tokenizer/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 20;
constexpr size_t kMaxAddedTokenBytes = 1024;

// \w of the Unicode standard's annex 18: letters, marks, decimal digits,
// connector punctuation.
bool IsWordCharacter(char32_t code_point) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      // Join controls and circled letters.
      return code_point == 0x200C || code_point == 0x200D ||
             (code_point >= 0x24B6 && code_point <= 0x24E9);
  }
}

bool IsWhiteSpace(char32_t code_point) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return true;
    default:
      return (code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x85;
  }
}

char32_t LastCharacter(absl::string_view text, size_t* num_bytes) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  *num_bytes = text.size() - at;
  return NextUtf8(text.substr(at)).code_point;
}

bool WordEndsIn(absl::string_view text) {
  size_t num_bytes;
  return !text.empty() && IsWordCharacter(LastCharacter(text, &num_bytes));
}

bool WordStarts(absl::string_view text) {
  return !text.empty() && IsWordCharacter(NextUtf8(text).code_point);
}

}  // namespace

absl::StatusOr<AddedTokens> AddedTokens::Parse(
    const std::optional<JsonValue>& array, const Vocabulary& vocabulary,
    const Normalizer& normalizer) {
  AddedTokens added;
  if (!array) return added;
  if (!array->json().is_array()) return array->Error("is not an array");
  if (array->json().size() > kMaxTokens) {
    return array->Error(absl::StrCat("more than ", kMaxTokens, " entries"));
  }
  size_t index = 0;
  for (const nlohmann::json& json : array->json()) {
    const JsonValue value(&json,
                          absl::StrCat(array->where(), "[", index++, "]"));
    AddedToken token;
    ABSL_ASSIGN_OR_RETURN(const int64_t id,
                          value.GetInt("id", 0, Vocabulary::kMaxId));
    token.id = static_cast<int32_t>(id);
    ABSL_ASSIGN_OR_RETURN(token.text, value.GetString("content"));
    ABSL_ASSIGN_OR_RETURN(token.single_word,
                          value.GetBool("single_word", false));
    ABSL_ASSIGN_OR_RETURN(token.lstrip, value.GetBool("lstrip", false));
    ABSL_ASSIGN_OR_RETURN(token.rstrip, value.GetBool("rstrip", false));
    ABSL_ASSIGN_OR_RETURN(token.special, value.GetBool("special", false));
    ABSL_ASSIGN_OR_RETURN(token.normalized,
                          value.GetBool("normalized", !token.special));
    if (token.text.empty()) return value.Error("content is empty");
    if (token.text.size() > kMaxAddedTokenBytes) {
      return value.Error(
          absl::StrCat("content is longer than ", kMaxAddedTokenBytes));
    }
    const int32_t model_id = vocabulary.Find(token.text);
    const std::string* model_text = vocabulary.Text(token.id);
    if (model_id != Vocabulary::kNone && model_id != token.id) {
      return value.Error(absl::StrCat(
          "id ", token.id, " of \"", absl::Utf8SafeCEscape(token.text),
          "\" is ", model_id, " in the vocabulary"));
    }
    if (model_text != nullptr && *model_text != token.text) {
      return value.Error(absl::StrCat(
          "id ", token.id, " of \"", absl::Utf8SafeCEscape(token.text),
          "\" is that of \"", absl::Utf8SafeCEscape(*model_text),
          "\" in the vocabulary"));
    }
    if (!added.by_id_.try_emplace(token.id, added.tokens_.size()).second ||
        !added.by_text_.try_emplace(token.text, token.id).second) {
      return value.Error(absl::StrCat("id ", token.id, " or content \"",
                                      absl::Utf8SafeCEscape(token.text),
                                      "\" stands there twice"));
    }
    added.end_ = std::max(added.end_, token.id + 1);
    added.tokens_.push_back(std::move(token));
  }
  // When two normalized contents are equal, the special token counts.
  for (const bool special : {true, false}) {
    for (size_t i = 0; i < added.tokens_.size(); ++i) {
      const AddedToken& token = added.tokens_[i];
      if (token.special != special) continue;
      if (!token.normalized) {
        added.raw_matcher_.Add(token.text, static_cast<int32_t>(i));
        continue;
      }
      ABSL_ASSIGN_OR_RETURN(const std::string text,
                            normalizer.Apply(token.text));
      added.normalized_matcher_.Add(text, static_cast<int32_t>(i));
    }
  }
  return added;
}

std::vector<Segment> AddedTokens::Split(
    absl::string_view text, bool normalized, bool parse_special,
    absl::Span<const size_t> literal_at) const {
  const PrefixMatcher& matcher =
      normalized ? normalized_matcher_ : raw_matcher_;
  std::vector<Segment> segments;
  size_t done = 0;  // segments cover the text up to here
  const auto append = [&](int32_t token_id, size_t begin, size_t end) {
    segments.push_back(
        {token_id, {static_cast<uint32_t>(begin), static_cast<uint32_t>(end)}});
  };
  size_t at = 0;
  while (at < text.size()) {
    const auto match = matcher.Find(text.substr(at));
    if (!match) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + match->num_bytes;
    at = end;
    const AddedToken& token = tokens_[match->value];
    if (token.special &&
        (!parse_special ||
         std::binary_search(literal_at.begin(), literal_at.end(), begin))) {
      continue;
    }
    if (token.single_word &&
        (WordEndsIn(text.substr(0, begin)) || WordStarts(text.substr(end)))) {
      continue;
    }
    size_t num_bytes;
    while (token.lstrip && begin > done &&
           IsWhiteSpace(LastCharacter(text.substr(0, begin), &num_bytes))) {
      begin -= num_bytes;
    }
    while (token.rstrip && end < text.size()) {
      const Utf8Step step = NextUtf8(text.substr(end));
      if (!IsWhiteSpace(step.code_point)) break;
      end += step.num_bytes;
    }
    if (done < begin) append(Vocabulary::kNone, done, begin);
    append(token.id, begin, end);
    done = end;
    at = end;
  }
  if (done < text.size()) append(Vocabulary::kNone, done, text.size());
  return segments;
}

const AddedToken* AddedTokens::Find(int32_t id) const {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &tokens_[it->second];
}

int32_t AddedTokens::FindText(absl::string_view text) const {
  const auto it = by_text_.find(text);
  return it == by_text_.end() ? Vocabulary::kNone : it->second;
}

}  // namespace troupe::tokenizer
