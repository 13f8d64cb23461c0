// The numeric formats of weights and their conversion to float.
#ifndef TROUPE_COMMON_DTYPE_H_
#define TROUPE_COMMON_DTYPE_H_

#include <bit>
#include <cstddef>
#include <cstdint>

namespace troupe {

// Little-endian, as in safetensors.
enum class DataType : uint8_t { kF32 = 0, kBF16 = 1, kF16 = 2 };

inline constexpr size_t SizeOf(DataType dtype) {
  return dtype == DataType::kF32 ? 4 : 2;
}

// "float32", "bfloat16", "float16": the names of config.json.
inline constexpr const char* Name(DataType dtype) {
  switch (dtype) {
    case DataType::kF32:
      return "float32";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kF16:
      return "float16";
  }
  return "?";
}

// bfloat16 is the upper half of a float: exact.
inline float F32FromBF16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest, ties to even; NaN stays NaN (quiet).
inline uint16_t BF16FromF32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Exact, subnormals included.
inline float F32FromF16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000u |
                                ((magnitude & 0x3ffu) << 13));
  }
  // Scaling by 2^112 moves the exponent bias from 15 to 127.
  const float scaled =
      std::bit_cast<float>(magnitude << 13) * std::bit_cast<float>(0x77800000u);
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

// Round to nearest, ties to even; overflow becomes infinity.
inline uint16_t F16FromF32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: let the adder round at 2^-24
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(
        sign | (std::bit_cast<uint32_t>(rounded) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace troupe

#endif  // TROUPE_COMMON_DTYPE_H_
