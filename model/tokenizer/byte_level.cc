#include "model/tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {
namespace {

constexpr size_t kNumCodePoints = 256 + 68;  // 68 bytes are not printable

struct Alphabet {
  std::array<char32_t, 256> code_point;
  std::array<int16_t, kNumCodePoints> byte;  // -1: stands for none
};

constexpr bool IsPrintable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         byte >= 0xAE;
}

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet{};
  for (int16_t& byte : alphabet.byte) byte = -1;
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t code_point =
        IsPrintable(byte) ? static_cast<char32_t>(byte) : next++;
    alphabet.code_point[byte] = code_point;
    alphabet.byte[code_point] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

void AppendByteLevel(absl::string_view bytes, std::string* text) {
  for (const char c : bytes) {
    AppendUtf8(kAlphabet.code_point[static_cast<uint8_t>(c)], text);
  }
}

bool AppendFromByteLevel(absl::string_view token, std::string* bytes) {
  const size_t start = bytes->size();
  while (!token.empty()) {
    const Utf8Step step = NextUtf8(token);
    if (step.kind != Utf8Step::kCharacter ||
        step.code_point >= kNumCodePoints ||
        kAlphabet.byte[step.code_point] < 0) {
      bytes->resize(start);
      return false;
    }
    bytes->push_back(static_cast<char>(kAlphabet.byte[step.code_point]));
    token.remove_prefix(step.num_bytes);
  }
  return true;
}

}  // namespace troupe::tokenizer
