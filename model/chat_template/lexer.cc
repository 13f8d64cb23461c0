#include "model/chat_template/lexer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/chat_template/limits.h"
#include "model/chat_template/text.h"
#include "model/tokenizer/utf8.h"

namespace troupe::jinja {
namespace {

using Type = Token::Type;
constexpr size_t kNpos = absl::string_view::npos;

// Line ends as \n, and without the last one.
std::string Normalized(absl::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      text += source[i];
    }
  }
  if (absl::EndsWith(text, "\n")) text.pop_back();
  return text;
}

bool IsNameStart(char c) { return absl::ascii_isalpha(c) || c == '_'; }
bool IsNamePart(char c) { return IsNameStart(c) || absl::ascii_isdigit(c); }

// The digits of Python's integer literals: with single underscores between.
size_t DigitsLength(absl::string_view text, bool (*is_digit)(unsigned char)) {
  size_t i = 0;
  while (i < text.size()) {
    if (is_digit(text[i])) {
      ++i;
    } else if (text[i] == '_' && i > 0 && i + 1 < text.size() &&
               is_digit(text[i + 1])) {
      ++i;
    } else {
      break;
    }
  }
  return i;
}

// Length of the float at the start of `text`, or 0.
size_t FloatLength(absl::string_view text) {
  const auto digits = [&](size_t from) {
    return DigitsLength(text.substr(std::min(from, text.size())),
                        absl::ascii_isdigit);
  };
  size_t end = digits(0);
  if (end == 0) return 0;
  bool is_float = false;
  if (end < text.size() && text[end] == '.' && digits(end + 1) > 0) {
    end += 1 + digits(end + 1);
    is_float = true;
  }
  if (end < text.size() && (text[end] == 'e' || text[end] == 'E')) {
    size_t exponent = end + 1;
    if (exponent < text.size() &&
        (text[exponent] == '+' || text[exponent] == '-')) {
      ++exponent;
    }
    if (digits(exponent) > 0) {
      end = exponent + digits(exponent);
      is_float = true;
    }
  }
  return is_float ? end : 0;
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = absl::ascii_tolower(c);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// The value of a string literal without its quotes. Python's escapes; what is
// no escape stands for itself.
absl::StatusOr<std::string> Unescaped(absl::string_view text, int line) {
  static constexpr char kSimple[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out += text[i];
      continue;
    }
    const char c = text[++i];
    if (c == '\n') continue;
    bool is_simple = false;
    for (size_t k = 0; k + 1 < sizeof(kSimple) - 1 && !is_simple; k += 2) {
      if (c != kSimple[k]) continue;
      out += kSimple[k + 1];
      is_simple = true;
    }
    if (is_simple) continue;
    char32_t code = 0;
    if (c >= '0' && c <= '7') {
      size_t end = i;
      while (end < text.size() && end < i + 3 && text[end] >= '0' &&
             text[end] <= '7') {
        code = 8 * code + static_cast<char32_t>(text[end++] - '0');
      }
      i = end - 1;
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const size_t num_digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      for (size_t k = 1; k <= num_digits; ++k) {
        const int digit = i + k < text.size() ? HexValue(text[i + k]) : -1;
        if (digit < 0 || code > 0xFFFFFFF) {
          return SyntaxError(line, "a text with a bad escape");
        }
        code = 16 * code + static_cast<char32_t>(digit);
      }
      i += num_digits;
    } else if (c == 'N') {
      return SyntaxError(line, "the escape \\N is not supported");
    } else {
      out += '\\';
      out += c;
      continue;
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
      return SyntaxError(line, "an escape that is no Unicode character");
    }
    tokenizer::AppendUtf8(code, &out);
  }
  return out;
}

class Lexer {
 public:
  explicit Lexer(absl::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) ABSL_RETURN_IF_ERROR(LexData());
    Add(Type::kEnd);
    return std::move(tokens_);
  }

 private:
  absl::string_view Rest() const { return source_.substr(at_); }
  char Peek(size_t ahead = 0) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0';
  }

  void Advance(size_t num_bytes) {
    const absl::string_view passed = source_.substr(at_, num_bytes);
    line_ += static_cast<int>(std::count(passed.begin(), passed.end(), '\n'));
    at_ += passed.size();
  }

  void Add(Type type, absl::string_view text = "") {
    tokens_.push_back({type, line_, std::string(text)});
  }

  size_t SpaceLength(size_t from) const {
    const absl::string_view rest = source_.substr(from);
    return rest.size() - Strip(rest, Side::kLeft).size();
  }

  // Up to the next tag, and the tag.
  absl::Status LexData() {
    size_t tag = source_.find('{', at_);
    while (tag != kNpos &&
           (tag + 1 >= source_.size() ||
            !absl::StrContains("{%#", source_.substr(tag + 1, 1)))) {
      tag = source_.find('{', tag + 1);
    }
    if (tag == kNpos) {
      Add(Type::kData, Rest());
      Advance(Rest().size());
      return absl::OkStatus();
    }
    const char kind = source_[tag + 1];
    char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign != '-' && sign != '+') sign = '\0';
    AddDataBefore(tag, kind == '{', sign);
    Advance(tag - at_ + 2 + (sign == '\0' ? 0 : 1));
    if (kind == '#') return SkipComment();
    if (kind == '%') {
      const size_t raw = RawLength();
      if (raw > 0) return LexRaw(raw);
    }
    Add(kind == '%' ? Type::kBlockBegin : Type::kVariableBegin);
    line_starting_ = false;
    return LexTag(kind == '%');
  }

  // The text from at_ to a tag, less what the tag's sign or lstrip_blocks
  // takes away.
  void AddDataBefore(size_t tag, bool is_variable, char sign) {
    absl::string_view text = source_.substr(at_, tag - at_);
    if (sign == '-') {
      text = Strip(text, Side::kRight);
    } else if (sign != '+' && !is_variable) {
      const size_t newline = text.rfind('\n');
      const size_t line_start = newline == kNpos ? 0 : newline + 1;
      if ((line_start > 0 || line_starting_) &&
          Strip(text.substr(line_start)).empty()) {
        text = text.substr(0, line_start);
      }
    }
    if (!text.empty()) Add(Type::kData, text);
  }

  // Passes the end of a tag, `end` of it without its sign, and what the sign
  // or trim_blocks takes after it.
  void PassEnd(absl::string_view end, char sign, bool is_block) {
    Advance((sign == '\0' ? 0 : 1) + end.size());
    if (sign == '-') {
      Advance(SpaceLength(at_));
    } else if (sign != '+' && is_block && Peek() == '\n') {
      Advance(1);
    }
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
  }

  absl::Status SkipComment() {
    const size_t end = source_.find("#}", at_);
    if (end == kNpos) return SyntaxError(line_, "a comment without an end");
    const char last = end > at_ ? source_[end - 1] : '\0';
    const bool is_signed = last == '-' || last == '+';
    Advance(end - at_ - (is_signed ? 1 : 0));
    PassEnd("#}", is_signed ? last : '\0', /*is_block=*/true);
    return absl::OkStatus();
  }

  // Length of "raw %}" at this place, the rest of a tag, or 0.
  size_t RawLength() const {
    size_t at = at_ + SpaceLength(at_);
    if (source_.substr(at, 3) != "raw") return 0;
    at += 3 + SpaceLength(at + 3);
    if (source_.substr(at, 2) == "%}") return at + 2 - at_;
    if (source_.substr(at, 3) != "-%}") return 0;
    return at + 3 + SpaceLength(at + 3) - at_;
  }

  absl::Status LexRaw(size_t begin_length) {
    const int first_line = line_;
    Advance(begin_length);
    line_starting_ = source_[at_ - 1] == '\n';
    for (size_t tag = source_.find("{%", at_); tag != kNpos;
         tag = source_.find("{%", tag + 1)) {
      size_t end = tag + 2;
      char sign = end < source_.size() ? source_[end] : '\0';
      if (sign != '-' && sign != '+') sign = '\0';
      if (sign != '\0') ++end;
      end += SpaceLength(end);
      if (source_.substr(end, 6) != "endraw") continue;
      end += 6 + SpaceLength(end + 6);
      char end_sign = end < source_.size() ? source_[end] : '\0';
      if (end_sign != '-' && end_sign != '+') end_sign = '\0';
      if (source_.substr(end + (end_sign == '\0' ? 0 : 1), 2) != "%}") continue;
      AddDataBefore(tag, /*is_variable=*/false, sign);
      Advance(end - at_);
      PassEnd("%}", end_sign, /*is_block=*/true);
      return absl::OkStatus();
    }
    return SyntaxError(first_line, "the statement 'raw' without an end");
  }

  // Whether the tag ends here; passes the end.
  bool PassTagEnd(bool is_block) {
    const absl::string_view end = is_block ? "%}" : "}}";
    char sign = Peek();
    if (sign != '-' && !(sign == '+' && is_block)) sign = '\0';
    if (!absl::StartsWith(Rest().substr(sign == '\0' ? 0 : 1), end)) {
      return false;
    }
    Add(is_block ? Type::kBlockEnd : Type::kVariableEnd);
    PassEnd(end, sign, is_block);
    return true;
  }

  absl::Status LexTag(bool is_block) {
    const int first_line = line_;
    std::string open;  // brackets
    while (true) {
      Advance(SpaceLength(at_));
      if (at_ >= source_.size()) {
        return SyntaxError(first_line, "a tag without an end");
      }
      if (open.empty() && PassTagEnd(is_block)) return absl::OkStatus();
      const char c = Peek();
      if (absl::ascii_isdigit(c)) {
        ABSL_RETURN_IF_ERROR(LexNumber());
      } else if (IsNameStart(c)) {
        size_t length = 1;
        while (IsNamePart(Peek(length))) ++length;
        Add(Type::kName, Rest().substr(0, length));
        Advance(length);
      } else if (c == '\'' || c == '"') {
        ABSL_RETURN_IF_ERROR(LexString(c));
      } else {
        ABSL_RETURN_IF_ERROR(LexOperator(&open));
      }
    }
  }

  absl::Status LexNumber() {
    const bool after_dot = source_[at_ - 1] == '.';
    const size_t float_length = after_dot ? 0 : FloatLength(Rest());
    if (float_length > 0) {
      std::string digits(Rest().substr(0, float_length));
      digits.erase(std::remove(digits.begin(), digits.end(), '_'),
                   digits.end());
      Add(Type::kFloat);
      if (!absl::SimpleAtod(digits, &tokens_.back().real) ||
          !std::isfinite(tokens_.back().real)) {
        return SyntaxError(line_, "a number beyond the range of a double");
      }
      Advance(float_length);
      return absl::OkStatus();
    }
    int base = 10;
    size_t length = 0;
    const char kind = absl::ascii_tolower(Peek(1));
    if (Peek() == '0' && (kind == 'x' || kind == 'o' || kind == 'b')) {
      base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
      length = 2 + DigitsLength(Rest().substr(2), absl::ascii_isxdigit);
    } else {
      length = DigitsLength(Rest(), absl::ascii_isdigit);
    }
    int64_t value = 0;
    for (const char c :
         Rest().substr(base == 10 ? 0 : 2, length - (base == 10 ? 0 : 2))) {
      if (c == '_') continue;
      const int digit = HexValue(c);
      if (digit >= base || __builtin_mul_overflow(value, base, &value) ||
          __builtin_add_overflow(value, digit, &value)) {
        return SyntaxError(line_, "a bad number, or one beyond 64 bits");
      }
    }
    if (length == 2 && base != 10) return SyntaxError(line_, "a bad number");
    Add(Type::kInteger);
    tokens_.back().integer = value;
    Advance(length);
    return absl::OkStatus();
  }

  absl::Status LexString(char quote) {
    size_t length = 1;
    while (Peek(length) != quote) {
      if (at_ + length >= source_.size()) {
        return SyntaxError(line_, "a text without its closing quote");
      }
      length += Peek(length) == '\\' ? 2 : 1;
    }
    ABSL_ASSIGN_OR_RETURN(const std::string text,
                          Unescaped(Rest().substr(1, length - 1), line_));
    Add(Type::kString, text);
    Advance(length + 1);
    return absl::OkStatus();
  }

  absl::Status LexOperator(std::string* open) {
    static constexpr absl::string_view kLong[] = {
        "//", "**", "==", "!=", "<=", ">="};
    size_t length = 1;
    for (const absl::string_view op : kLong) {
      if (absl::StartsWith(Rest(), op)) length = 2;
    }
    const char c = Peek();
    if (length == 1 &&
        !absl::StrContains("+-*/%~<>=.:|,;()[]{}", absl::string_view(&c, 1))) {
      return SyntaxError(line_,
                         absl::StrCat("the character '", FirstChar(Rest()),
                                      "' is not expected here"));
    }
    if (length == 1 && (c == '(' || c == '[' || c == '{')) {
      if (static_cast<int>(open->size()) == kMaxNesting) {
        return SyntaxError(
            line_, absl::StrCat("more than ", kMaxNesting, " open brackets"));
      }
      *open += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (length == 1 && (c == ')' || c == ']' || c == '}')) {
      if (open->empty() || open->back() != c) {
        return SyntaxError(
            line_, absl::StrCat("unexpected '", absl::string_view(&c, 1), "'"));
      }
      open->pop_back();
    }
    Add(Type::kOperator, Rest().substr(0, length));
    Advance(length);
    return absl::OkStatus();
  }

  const absl::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // what passed last ended a line
  std::vector<Token> tokens_;
};

}  // namespace

absl::Status SyntaxError(int line, absl::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", message));
}

absl::StatusOr<std::vector<Token>> Lex(absl::string_view source) {
  const std::string text = Normalized(source);
  return Lexer(text).Run();
}

}  // namespace troupe::jinja
