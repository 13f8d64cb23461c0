#include "model/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {
namespace {

// What a replacement may make of a text; offsets have 32 bits.
constexpr size_t kMaxReplacedBytes = size_t{256} << 20;

bool IsAscii(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

// Canonical ordering (Unicode standard, section 3.11). The library's own sort
// takes quadratic time on long runs of marks.
void OrderMarks(std::vector<utf8proc_int32_t>* code_points) {
  const auto combining_class = [](utf8proc_int32_t code_point) {
    return utf8proc_get_property(code_point)->combining_class;
  };
  auto begin = code_points->begin();
  while (begin != code_points->end()) {
    if (combining_class(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, code_points->end(), [&](auto c) {
      return combining_class(c) == 0;
    });
    std::stable_sort(begin, end, [&](auto a, auto b) {
      return combining_class(a) < combining_class(b);
    });
    begin = end;
  }
}

}  // namespace

std::string NormalizeUnicode(UnicodeForm form, absl::string_view text) {
  if (IsAscii(text)) return std::string(text);
  const bool compatible =
      form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
  const bool compose = form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc;
  const auto decompose_options = static_cast<utf8proc_option_t>(
      UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0));
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    CHECK(step.kind == Utf8Step::kCharacter);
    text.remove_prefix(step.num_bytes);
    constexpr size_t kMaxDecomposed = 32;  // U+FDFA has 18
    utf8proc_int32_t decomposed[kMaxDecomposed];
    int boundary_class = UTF8PROC_BOUNDCLASS_START;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(step.code_point), decomposed,
        kMaxDecomposed, decompose_options, &boundary_class);
    CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(kMaxDecomposed));
    code_points.insert(code_points.end(), decomposed, decomposed + count);
  }
  OrderMarks(&code_points);
  auto count = static_cast<utf8proc_ssize_t>(code_points.size());
  if (compose) {
    count = utf8proc_normalize_utf32(
        code_points.data(), count,
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    CHECK_GE(count, 0);
  }
  std::string result;
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    AppendUtf8(static_cast<char32_t>(code_points[i]), &result);
  }
  return result;
}

absl::StatusOr<std::unique_ptr<const Regex>> ParsePattern(
    const JsonValue& pattern) {
  const std::optional<JsonValue> literal = pattern.Find("String");
  const std::optional<JsonValue> regex = pattern.Find("Regex");
  if (literal.has_value() == regex.has_value()) {
    return pattern.Error("is neither {\"String\"} nor {\"Regex\"}");
  }
  const JsonValue& value = literal ? *literal : *regex;
  ABSL_ASSIGN_OR_RETURN(const std::string text, value.AsString());
  if (literal && text.empty()) return nullptr;
  auto compiled = literal ? Regex::Literal(text) : Regex::Compile(text);
  if (!compiled.ok()) {
    return absl::Status(
        compiled.status().code(),
        absl::StrCat(value.where(), ": ", compiled.status().message()));
  }
  return *std::move(compiled);
}

absl::StatusOr<std::string> ReplaceAll(const Regex& regex,
                                       absl::string_view content,
                                       absl::string_view text) {
  std::vector<ByteRange> matches;
  ABSL_RETURN_IF_ERROR(regex.FindAll(text, &matches));
  std::string result;
  size_t at = 0;
  for (const ByteRange& match : matches) {
    absl::StrAppend(&result, text.substr(at, match.begin - at), content);
    at = match.end;
    if (result.size() > kMaxReplacedBytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a replacement makes a text longer than ",
                       kMaxReplacedBytes, " bytes"));
    }
  }
  absl::StrAppend(&result, text.substr(at));
  return result;
}

absl::StatusOr<Normalizer> Normalizer::Parse(
    const std::optional<JsonValue>& value) {
  Normalizer normalizer;
  if (value) ABSL_RETURN_IF_ERROR(normalizer.Add(*value));
  return normalizer;
}

absl::Status Normalizer::Add(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const std::string type, value.GetString("type"));
  if (type == "Sequence") {
    ABSL_ASSIGN_OR_RETURN(const std::vector<JsonValue> members,
                          value.GetArray("normalizers"));
    for (const JsonValue& member : members) {
      ABSL_RETURN_IF_ERROR(Add(member));
    }
    return absl::OkStatus();
  }
  Step step{};
  if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    step.kind = Step::kUnicode;
    step.form = type == "NFC"    ? UnicodeForm::kNfc
                : type == "NFD"  ? UnicodeForm::kNfd
                : type == "NFKC" ? UnicodeForm::kNfkc
                                 : UnicodeForm::kNfkd;
  } else if (type == "Prepend") {
    step.kind = Step::kPrepend;
    ABSL_ASSIGN_OR_RETURN(step.content, value.GetString("prepend"));
  } else if (type == "Replace") {
    step.kind = Step::kReplace;
    ABSL_ASSIGN_OR_RETURN(step.content, value.GetString("content"));
    ABSL_ASSIGN_OR_RETURN(const JsonValue pattern, value.Get("pattern"));
    ABSL_ASSIGN_OR_RETURN(step.regex, ParsePattern(pattern));
    if (step.regex == nullptr) return absl::OkStatus();
  } else {
    return value.Unsupported(absl::StrCat("normalizer \"", type, "\""));
  }
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Normalizer::Apply(absl::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Step::kUnicode:
        result = NormalizeUnicode(step.form, result);
        break;
      case Step::kPrepend:
        if (!result.empty()) result.insert(0, step.content);
        break;
      case Step::kReplace: {
        ABSL_ASSIGN_OR_RETURN(result,
                              ReplaceAll(*step.regex, step.content, result));
        break;
      }
    }
  }
  return result;
}

}  // namespace troupe::tokenizer
