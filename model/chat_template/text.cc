#include "model/chat_template/text.h"

#include <string.h>
#include <utf8proc.h>

#include "model/tokenizer/utf8.h"

namespace troupe::jinja {
namespace {

using tokenizer::AppendUtf8;

// Characters that have a case of their own, and what they are called in it.
enum class Case { kNone, kLower, kUpper };

utf8proc_int32_t Proc(char32_t c) { return static_cast<utf8proc_int32_t>(c); }

Case CaseOf(char32_t c) {
  switch (utf8proc_category(Proc(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
      return Case::kUpper;
    case UTF8PROC_CATEGORY_LL:
      return Case::kLower;
    default:
      return Case::kNone;
  }
}

constexpr char32_t kSharpS = 0xDF;

void AppendUpper(char32_t c, std::string* out) {
  if (c == kSharpS) {
    out->append("SS");
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_toupper(Proc(c))), out);
  }
}

void AppendTitle(char32_t c, std::string* out) {
  if (c == kSharpS) {
    out->append("Ss");
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_totitle(Proc(c))), out);
  }
}

void AppendLower(char32_t c, std::string* out) {
  AppendUtf8(static_cast<char32_t>(utf8proc_tolower(Proc(c))), out);
}

// The last character of a text that is not empty.
absl::string_view LastChar(absl::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return text.substr(at);
}

bool IsIn(absl::string_view c, const absl::string_view* chars) {
  if (chars != nullptr) return Find(*chars, c) != absl::string_view::npos;
  return IsSpace(TakeChar(&c));
}

bool IsLineEnd(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
         c == 0x2028 || c == 0x2029;
}

}  // namespace

int64_t CountChars(absl::string_view text) {
  int64_t count = 0;
  for (const char c : text) {
    count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }
  return count;
}

absl::string_view FirstChar(absl::string_view text) {
  return text.substr(0, tokenizer::NextUtf8(text).num_bytes);
}

char32_t TakeChar(absl::string_view* text) {
  const unsigned char first = static_cast<unsigned char>((*text)[0]);
  if (first < 0x80) {
    text->remove_prefix(1);
    return first;
  }
  const tokenizer::Utf8Step step = tokenizer::NextUtf8(*text);
  text->remove_prefix(step.num_bytes);
  return step.kind == tokenizer::Utf8Step::kCharacter ? step.code_point
                                                      : char32_t{0xFFFD};
}

bool IsSpace(char32_t c) {
  if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 28 && c <= 32);
  return c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsPrintable(char32_t c) {
  if (c < 0x80) return c >= 32 && c < 127;
  switch (utf8proc_category(Proc(c))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

absl::string_view Strip(absl::string_view text, Side side,
                        const absl::string_view* chars) {
  while (side != Side::kRight && !text.empty()) {
    const absl::string_view c = FirstChar(text);
    if (!IsIn(c, chars)) break;
    text.remove_prefix(c.size());
  }
  while (side != Side::kLeft && !text.empty()) {
    const absl::string_view c = LastChar(text);
    if (!IsIn(c, chars)) break;
    text.remove_suffix(c.size());
  }
  return text;
}

std::string Upper(absl::string_view text) {
  std::string out;
  while (!text.empty()) AppendUpper(TakeChar(&text), &out);
  return out;
}

std::string Lower(absl::string_view text) {
  std::string out;
  while (!text.empty()) AppendLower(TakeChar(&text), &out);
  return out;
}

std::string Capitalize(absl::string_view text) {
  std::string out;
  if (!text.empty()) AppendTitle(TakeChar(&text), &out);
  while (!text.empty()) AppendLower(TakeChar(&text), &out);
  return out;
}

std::string TitleMethod(absl::string_view text) {
  std::string out;
  bool in_word = false;
  while (!text.empty()) {
    const char32_t c = TakeChar(&text);
    if (in_word) {
      AppendLower(c, &out);
    } else {
      AppendTitle(c, &out);
    }
    in_word = CaseOf(c) != Case::kNone;
  }
  return out;
}

std::string TitleFilter(absl::string_view text) {
  std::string out;
  bool in_word = false;
  while (!text.empty()) {
    const char32_t c = TakeChar(&text);
    const bool is_border =
        IsSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    if (in_word) {
      AppendLower(c, &out);
    } else {
      AppendUpper(c, &out);
    }
    in_word = !is_border;
  }
  return out;
}

bool IsUpper(absl::string_view text) {
  bool any = false;
  while (!text.empty()) {
    const Case kind = CaseOf(TakeChar(&text));
    if (kind == Case::kLower) return false;
    any |= kind == Case::kUpper;
  }
  return any;
}

bool IsLower(absl::string_view text) {
  bool any = false;
  while (!text.empty()) {
    const Case kind = CaseOf(TakeChar(&text));
    if (kind == Case::kUpper) return false;
    any |= kind == Case::kLower;
  }
  return any;
}

bool AllAre(absl::string_view text, CharClass char_class) {
  if (text.empty()) return false;
  while (!text.empty()) {
    const char32_t c = TakeChar(&text);
    const utf8proc_category_t category = utf8proc_category(Proc(c));
    const bool is_alpha =
        category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
    const bool is_digit = category == UTF8PROC_CATEGORY_ND;
    switch (char_class) {
      case CharClass::kAlpha:
        if (!is_alpha) return false;
        break;
      case CharClass::kDigit:
        if (!is_digit) return false;
        break;
      case CharClass::kAlnum:
        if (!is_alpha && !is_digit) return false;
        break;
      case CharClass::kSpace:
        if (!IsSpace(c)) return false;
        break;
    }
  }
  return true;
}

size_t Find(absl::string_view text, absl::string_view part, size_t from) {
  if (from > text.size()) return absl::string_view::npos;
  if (part.empty()) return from;
  if (text.size() - from < part.size()) return absl::string_view::npos;
  // std::string::find takes the product of both sizes at worst, which a client
  // could choose; memmem does not.
  const void* found =
      memmem(text.data() + from, text.size() - from, part.data(), part.size());
  if (found == nullptr) return absl::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

absl::string_view TakeLine(absl::string_view* text) {
  const absl::string_view all = *text;
  while (!text->empty()) {
    const size_t length = all.size() - text->size();
    const char32_t c = TakeChar(text);
    if (!IsLineEnd(c)) continue;
    if (c == '\r' && !text->empty() && (*text)[0] == '\n') {
      text->remove_prefix(1);
    }
    return all.substr(0, length);
  }
  return all;
}

}  // namespace troupe::jinja
