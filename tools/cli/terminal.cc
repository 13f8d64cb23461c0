#include "tools/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_format.h"

namespace troupe {
namespace {

std::string FormatScaled(double value, const char* const units[],
                         size_t num_units) {
  size_t unit = 0;
  while (unit + 1 < num_units && value >= 999.5) {
    value /= 1000;
    ++unit;
  }
  const int digits = unit == 0 || value >= 9.95 ? 0 : 1;
  return absl::StrFormat("%.*f%s", digits, value, units[unit]);
}

}  // namespace

bool IsTerminal(int fd) {
  const char* term = std::getenv("TERM");
  return isatty(fd) == 1 && (term == nullptr || std::strcmp(term, "dumb") != 0);
}

bool UseColour(int fd) {
  const char* no_colour = std::getenv("NO_COLOR");
  return (no_colour == nullptr || *no_colour == '\0') && IsTerminal(fd);
}

size_t TerminalColumns(int fd) {
  winsize size = {};
  if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

std::string WithoutControls(const std::string& text) {
  std::string clean;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool c0 =
        (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7F;
    // U+0080 to U+009F are two bytes in UTF-8.
    const bool c1 = byte == 0xC2 && i + 1 < text.size() &&
                    static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (c0 || c1) {
      clean += "\xEF\xBF\xBD";
      i += c1 ? 1 : 0;
    } else {
      clean.push_back(text[i]);
    }
  }
  return clean;
}

std::string FormatBytes(double num_bytes) {
  static const char* const kUnits[] = {" B", " kB", " MB", " GB", " TB"};
  return FormatScaled(num_bytes, kUnits, 5);
}

std::string FormatCount(double count) {
  static const char* const kUnits[] = {"", "k", "M", "G", "T"};
  return FormatScaled(count, kUnits, 5);
}

}  // namespace troupe
