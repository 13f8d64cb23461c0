#include "model/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
// Steps of one match; a run of 16 Mi spaces in an ordinary pattern needs some
// tens of millions.
constexpr uint32_t kMatchLimit = 100'000'000;
constexpr uint32_t kHeapLimitKib = 256 << 10;

// Writes an Oniguruma pattern as a PCRE2 one.
//
// Where the libraries agree the text is copied. \s, \w and \u differ in
// meaning and are rewritten with Unicode properties; \v, \h, \b, sets inside
// sets, {n,m}+ and PCRE2's own verbs mean something else or nothing in the
// other library and are refused.
class Translator {
 public:
  explicit Translator(absl::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        ABSL_RETURN_IF_ERROR(Escape());
      } else if (in_class_) {
        ABSL_RETURN_IF_ERROR(ClassCharacter(c));
      } else if (c == '[') {
        OpenClass();
      } else if (c == '(') {
        ABSL_RETURN_IF_ERROR(Group());
      } else if (c == '}' && after_interval_plus()) {
        return Refuse("a '+' after an interval");
      } else {
        Copy(1);
      }
    }
    if (in_class_) return Refuse("a set without ']'");
    return std::move(out_);
  }

 private:
  bool after_interval_plus() const {
    return at_ + 1 < in_.size() && in_[at_ + 1] == '+';
  }

  void Copy(size_t count) {
    absl::StrAppend(&out_, in_.substr(at_, count));
    at_ += count;
  }

  absl::Status Refuse(absl::string_view what) const {
    return absl::UnimplementedError(absl::StrCat("regular expression: ", what,
                                                 " at byte ", at_,
                                                 " is not supported: ", in_));
  }

  void OpenClass() {
    in_class_ = true;
    Copy(1);
    if (at_ < in_.size() && in_[at_] == '^') Copy(1);
    class_begin_ = at_;
  }

  absl::Status ClassCharacter(char c) {
    if (c == '[' || (c == '&' && absl::StartsWith(in_.substr(at_), "&&"))) {
      return Refuse("a set inside a set");
    }
    if (c == ']') {
      if (at_ == class_begin_) return Refuse("an empty set");
      in_class_ = false;
    }
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Group() {
    static constexpr absl::string_view kKinds[] = {
        "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    for (const absl::string_view kind : kKinds) {
      if (absl::StartsWith(in_.substr(at_), kind)) {
        Copy(kind.size());
        return absl::OkStatus();
      }
    }
    const absl::string_view start = in_.substr(at_, 2);
    if (start == "(?" || start == "(*") {
      return Refuse(absl::StrCat("the group ", in_.substr(at_, 4)));
    }
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Escape() {
    if (at_ + 1 == in_.size()) return Refuse("a final backslash");
    const char c = in_[at_ + 1];
    switch (c) {
      // Oniguruma has the property; PCRE2's \s also takes U+180E.
      case 's':
        return Emit("\\p{White_Space}");
      case 'S':
        return Emit("\\P{White_Space}");
      case 'w':
        return Emit(in_class_ ? kWord : absl::StrCat("[", kWord, "]"));
      case 'W':
        if (in_class_) return Refuse("\\W inside a set");
        return Emit(absl::StrCat("[^", kWord, "]"));
      case 'd':
        return Emit("\\p{Nd}");
      case 'D':
        return Emit("\\P{Nd}");
      case 'v':
        return Emit("\\x0B");
      case 'n':
      case 'r':
      case 't':
      case 'f':
        Copy(2);
        return absl::OkStatus();
      case 'p':
      case 'P':
        return Property();
      case 'u':
        return FourDigits();
      case 'x':
        return HexCharacter();
      default:
        break;
    }
    if (!absl::ascii_ispunct(static_cast<unsigned char>(c))) {
      return Refuse(absl::StrCat("\\", in_.substr(at_ + 1, 1)));
    }
    Copy(2);
    return absl::OkStatus();
  }

  absl::Status Emit(absl::string_view text) {
    absl::StrAppend(&out_, text);
    at_ += 2;
    return absl::OkStatus();
  }

  absl::Status Property() {
    const size_t close = in_.find('}', at_);
    if (in_.substr(at_ + 2, 1) != "{" || close == absl::string_view::npos) {
      return Refuse("a property without {}");
    }
    Copy(close + 1 - at_);
    return absl::OkStatus();
  }

  absl::Status FourDigits() {
    const absl::string_view digits = in_.substr(at_ + 2, 4);
    if (digits.size() != 4 || !AllHex(digits)) return Refuse("\\u");
    absl::StrAppend(&out_, "\\x{", digits, "}");
    at_ += 6;
    return absl::OkStatus();
  }

  absl::Status HexCharacter() {
    const absl::string_view rest = in_.substr(at_ + 2);
    if (absl::StartsWith(rest, "{")) {
      const size_t close = rest.find('}');
      if (close == absl::string_view::npos ||
          !AllHex(rest.substr(1, close - 1))) {
        return Refuse("\\x");
      }
      Copy(2 + close + 1);
      return absl::OkStatus();
    }
    // Two digits are a byte in Oniguruma and a code point in PCRE2.
    if (rest.size() < 2 || rest[0] > '7' || !AllHex(rest.substr(0, 2))) {
      return Refuse("\\x");
    }
    Copy(4);
    return absl::OkStatus();
  }

  static bool AllHex(absl::string_view text) {
    for (const char c : text) {
      if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return false;
    }
    return !text.empty();
  }

  static constexpr absl::string_view kWord =
      "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

  const absl::string_view in_;
  size_t at_ = 0;
  bool in_class_ = false;
  size_t class_begin_ = 0;  // after "[" or "[^"
  std::string out_;
};

std::string ErrorText(int error) {
  PCRE2_UCHAR buffer[256] = {0};
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

struct Regex::Impl {
  ~Impl() {
    pcre2_match_context_free(match_context);
    pcre2_code_free(code);
  }

  std::string pattern;
  pcre2_code* code = nullptr;
  pcre2_match_context* match_context = nullptr;
};

Regex::Regex(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Regex::~Regex() = default;

absl::StatusOr<std::unique_ptr<const Regex>> Regex::Compile(
    absl::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "regular expression: longer than ", kMaxPatternBytes, " bytes"));
  }
  ABSL_ASSIGN_OR_RETURN(const std::string translated,
                        Translator(pattern).Run());
  auto impl = std::make_unique<Impl>();
  impl->pattern = std::string(pattern);
  // Ruby's ^ and $ match at every line; a line ends with \n alone.
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  if (context == nullptr) return absl::ResourceExhaustedError("no memory");
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  impl->code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
      &error_offset, context);
  pcre2_compile_context_free(context);
  if (impl->code == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression: ", ErrorText(error), ": ", pattern));
  }
  // Without JIT (not built in, or no executable memory) matching is slower.
  pcre2_jit_compile(impl->code, PCRE2_JIT_COMPLETE);
  impl->match_context = pcre2_match_context_create(nullptr);
  if (impl->match_context == nullptr) {
    return absl::ResourceExhaustedError("no memory");
  }
  pcre2_set_match_limit(impl->match_context, kMatchLimit);
  pcre2_set_heap_limit(impl->match_context, kHeapLimitKib);
  return std::unique_ptr<const Regex>(new Regex(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<const Regex>> Regex::Literal(
    absl::string_view text) {
  if (text.empty()) {
    return absl::InvalidArgumentError("an empty pattern matches nothing");
  }
  std::string pattern;
  for (const char c : text) {
    if (absl::ascii_ispunct(static_cast<unsigned char>(c))) {
      pattern.push_back('\\');
    }
    pattern.push_back(c);
  }
  return Compile(pattern);
}

absl::Status Regex::FindAll(absl::string_view text,
                            std::vector<ByteRange>* matches) const {
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(
      pcre2_match_data_create(1, nullptr));
  if (data == nullptr) return absl::ResourceExhaustedError("no memory");
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  std::optional<size_t> last_end;
  size_t at = 0;
  while (at <= text.size()) {
    int count =
        pcre2_match(impl_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK,
                    data.get(), impl_->match_context);
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) {
      count = pcre2_match(impl_->code, subject, text.size(), at,
                          PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data.get(),
                          impl_->match_context);
    }
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("regular expression: ", ErrorText(count), " at byte ",
                       at, ": ", impl_->pattern));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    const size_t begin = range[0];
    const size_t end = range[1];
    if (begin == end && last_end == end) {
      // An empty match right after a match does not count.
      if (at == text.size()) break;
      at += NextUtf8(text.substr(at)).num_bytes;
      continue;
    }
    matches->push_back(
        {static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
    at = end;
    last_end = end;
  }
  return absl::OkStatus();
}

}  // namespace troupe::tokenizer
