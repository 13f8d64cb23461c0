// What the program may assume of its terminal.
#ifndef TROUPE_TOOLS_CLI_TERMINAL_H_
#define TROUPE_TOOLS_CLI_TERMINAL_H_

#include <cstddef>
#include <string>

namespace troupe {

// A person is looking: `fd` is a terminal that is not "dumb".
bool IsTerminal(int fd);

// Colour may be used on `fd`: a terminal, and NO_COLOR is not set.
bool UseColour(int fd);

// Columns of the terminal; 80 when unknown.
size_t TerminalColumns(int fd);

// Control characters but tab and newline become U+FFFD, so that a text from
// elsewhere cannot steer the terminal.
std::string WithoutControls(const std::string& text);

// "1.5 GB", "730 MB", "12 kB": decimal units, at most three digits.
std::string FormatBytes(double num_bytes);

// "1.2k", "35M": at most three digits.
std::string FormatCount(double count);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_TERMINAL_H_
