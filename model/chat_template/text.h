// Python's text operations on valid UTF-8: what Python counts and cuts by
// character is counted and cut by character here. Pure functions.
#ifndef TROUPE_MODEL_CHAT_TEMPLATE_TEXT_H_
#define TROUPE_MODEL_CHAT_TEMPLATE_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace troupe::jinja {

int64_t CountChars(absl::string_view text);

// Takes the first character off `text`, which must not be empty.
char32_t TakeChar(absl::string_view* text);
// The first character as a text.
absl::string_view FirstChar(absl::string_view text);

// str.isspace of one character.
bool IsSpace(char32_t c);
// str.isprintable of one character.
bool IsPrintable(char32_t c);

enum class Side { kBoth, kLeft, kRight };
// str.strip: characters of `chars`, or white space where it is null.
absl::string_view Strip(absl::string_view text, Side side = Side::kBoth,
                        const absl::string_view* chars = nullptr);

// Upper and lower case character by character. Of the characters whose other
// case is longer, only the German sharp s is known.
std::string Upper(absl::string_view text);
std::string Lower(absl::string_view text);
std::string Capitalize(absl::string_view text);
// str.title: a word begins after anything without case.
std::string TitleMethod(absl::string_view text);
// Jinja's filter: a word begins after white space, '-', '(', '{', '[', '<'.
std::string TitleFilter(absl::string_view text);

bool IsUpper(absl::string_view text);
bool IsLower(absl::string_view text);
enum class CharClass { kAlpha, kDigit, kAlnum, kSpace };
// str.isalpha and so on: false for an empty text.
bool AllAre(absl::string_view text, CharClass char_class);

// Byte offset of the first match at or after `from`, or npos. Linear.
size_t Find(absl::string_view text, absl::string_view part, size_t from = 0);

// Takes the first line and its end off `text`, which must not be empty: the
// lines of str.splitlines, one by one.
absl::string_view TakeLine(absl::string_view* text);

}  // namespace troupe::jinja

#endif  // TROUPE_MODEL_CHAT_TEMPLATE_TEXT_H_
