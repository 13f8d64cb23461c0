#include "model/mapped_tensor.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/dequantize.h"
#include "common/status_macros.h"
#include "model/strict_json.h"

namespace troupe {
namespace {

// The largest float16 that is finite, as bits; negative ones are above it.
constexpr uint16_t kLargestScale = 0x7bff;

size_t PageSize() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

// The index of the first element that is wrong, or `count`. The loop over a
// block has no way out, so that it is vectorised.
template <typename T, typename IsWrong>
size_t FindWrong(const uint8_t* bytes, size_t count, const IsWrong& is_wrong) {
  constexpr size_t kBlock = 4096;
  T block[kBlock];
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t size = std::min(kBlock, count - begin);
    std::memcpy(block, bytes + begin * sizeof(T), size * sizeof(T));
    T wrong = 0;
    for (size_t i = 0; i < size; ++i) wrong |= is_wrong(block[i]);
    if (wrong == 0) continue;
    for (size_t i = 0; i < size; ++i) {
      if (is_wrong(block[i])) return begin + i;
    }
  }
  return count;
}

}  // namespace

MappedBytes::MappedBytes(MappedBytes&& other) noexcept {
  *this = std::move(other);
}

MappedBytes& MappedBytes::operator=(MappedBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  std::swap(is_copy_, other.is_copy_);
  return *this;
}

MappedBytes::~MappedBytes() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

absl::StatusOr<MappedBytes> MappedBytes::Map(const SafetensorsFile& file,
                                             const TensorInfo& info,
                                             bool copy) {
  ABSL_RETURN_IF_ERROR(file.CheckUnchanged());
  MappedBytes bytes;
  bytes.num_bytes_ = info.num_bytes;
  if (info.num_bytes == 0) return bytes;
  bytes.is_copy_ = copy || info.offset % SizeOf(info.type) != 0;
  const uint64_t begin =
      bytes.is_copy_ ? info.offset : info.offset / PageSize() * PageSize();
  bytes.mapping_bytes_ = info.offset + info.num_bytes - begin;
  void* mapping =
      bytes.is_copy_
          ? mmap(nullptr, bytes.mapping_bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
          : mmap(nullptr, bytes.mapping_bytes_, PROT_READ, MAP_PRIVATE,
                 file.fd(), static_cast<off_t>(begin));
  if (mapping == MAP_FAILED) {
    return absl::ErrnoToStatus(
        errno, absl::StrCat("cannot map ", file.path(), ": tensor ",
                            Printable(info.name)));
  }
  bytes.mapping_ = mapping;
  bytes.data_ = static_cast<const uint8_t*>(mapping) + (info.offset - begin);
  if (bytes.is_copy_) {
    ABSL_RETURN_IF_ERROR(file.ReadInto(info, static_cast<char*>(mapping)));
    mprotect(mapping, bytes.mapping_bytes_, PROT_READ);
  }
  return bytes;
}

void MappedBytes::Prefetch() const {
  if (mapping_ != nullptr && !is_copy_) {
    madvise(mapping_, mapping_bytes_, MADV_WILLNEED);
  }
}

void MappedBytes::Populate() const {
#ifdef MADV_POPULATE_READ
  // Where the kernel does not have it (before 5.14) the pages come by faults.
  if (mapping_ != nullptr && !is_copy_) {
    madvise(mapping_, mapping_bytes_, MADV_POPULATE_READ);
  }
#endif
}

void MappedBytes::DropPages(size_t begin, size_t end) const {
  if (mapping_ == nullptr || is_copy_) return;
  // The first and the last page go with the whole only.
  const size_t shift =
      static_cast<size_t>(data_ - static_cast<const uint8_t*>(mapping_));
  const size_t first =
      begin == 0 ? 0 : (begin + shift + PageSize() - 1) / PageSize();
  const size_t last = end == num_bytes_
                          ? (mapping_bytes_ + PageSize() - 1) / PageSize()
                          : (end + shift) / PageSize();
  if (first >= last) return;
  madvise(static_cast<char*>(mapping_) + first * PageSize(),
          (last - first) * PageSize(), MADV_DONTNEED);
}

DataType MappedTensor::dtype() const {
  CHECK(!IsQuantized(matrix_.format));
  return static_cast<DataType>(matrix_.format);
}

void MappedTensor::Prefetch() const {
  for (const MappedBytes* part : {&numbers_, &scales_, &zeros_}) {
    part->Prefetch();
  }
}

void MappedTensor::Populate() const {
  for (const MappedBytes* part : {&numbers_, &scales_, &zeros_}) {
    part->Populate();
  }
}

void MappedTensor::DropPages() const {
  for (const MappedBytes* part : {&numbers_, &scales_, &zeros_}) {
    part->DropPages(0, part->num_bytes());
  }
}

void MappedTensor::DropPages(size_t begin, size_t end) const {
  if (matrix_.n == 0) return;
  const size_t row_bytes = numbers_.num_bytes() / matrix_.n;
  numbers_.DropPages(begin * row_bytes, end * row_bytes);
}

void MappedTensor::AddTo(Digest& digest) const {
  std::string head = absl::StrCat(Name(matrix_.format), " [",
                                  absl::StrJoin(shape_, ", "), "]");
  if (IsQuantized(matrix_.format)) {
    absl::StrAppend(&head, " groups of ", matrix_.group_size);
  }
  absl::StrAppend(&head, "\n");
  digest.Update(head.data(), head.size());
  for (const MappedBytes* part : {&numbers_, &scales_, &zeros_}) {
    digest.Update(part->data(), part->num_bytes());
  }
}

absl::Status MappedTensor::CheckContents(const std::string& who) const {
  if (!IsQuantized(matrix_.format)) return absl::OkStatus();
  const size_t num_scales = matrix_.n * matrix_.num_groups();
  const auto where = [&](size_t group) {
    return absl::StrCat(who, "row ", group / matrix_.num_groups(), ", group ",
                        group % matrix_.num_groups(), ": ");
  };
  const size_t scale =
      FindWrong<uint16_t>(scales_.data(), num_scales, [](uint16_t bits) {
        return static_cast<uint16_t>(bits > kLargestScale);
      });
  if (scale < num_scales) {
    uint16_t bits;
    std::memcpy(&bits, scales_.data() + 2 * scale, 2);
    return absl::InvalidArgumentError(
        absl::StrCat(where(scale), "the scale is ", F32FromF16(bits),
                     ", must be finite and not negative"));
  }
  if (matrix_.format == WeightFormat::kInt4Zero) {
    const size_t zero = FindWrong<uint8_t>(
        zeros_.data(), num_scales,
        [](uint8_t value) { return static_cast<uint8_t>(value > 15); });
    if (zero < num_scales) {
      return absl::InvalidArgumentError(
          absl::StrCat(where(zero), "the zero point is ",
                       int{zeros_.data()[zero]}, ", at most 15 allowed"));
    }
  }
  if (matrix_.format == WeightFormat::kInt8) {
    const size_t number = FindWrong<uint8_t>(
        numbers_.data(), num_elements(),
        [](uint8_t bits) { return static_cast<uint8_t>(bits == 0x80); });
    if (number < num_elements()) {
      return absl::InvalidArgumentError(absl::StrCat(
          who, "row ", number / matrix_.k, ", column ", number % matrix_.k,
          ": the number is -128, at least -127 allowed"));
    }
  }
  return absl::OkStatus();
}

absl::Status MappedTensor::CheckFinite(const std::string& who) const {
  // All bits of the exponent are set in NaN and infinity.
  size_t wrong = num_elements();
  const auto find16 = [&](uint16_t exponent) {
    wrong = FindWrong<uint16_t>(
        numbers_.data(), num_elements(), [exponent](uint16_t bits) {
          return static_cast<uint16_t>((bits & exponent) == exponent);
        });
  };
  switch (matrix_.format) {
    case WeightFormat::kBF16:
      find16(0x7f80);
      break;
    case WeightFormat::kF16:
      find16(0x7c00);
      break;
    case WeightFormat::kF32:
      wrong = FindWrong<uint32_t>(
          numbers_.data(), num_elements(), [](uint32_t bits) {
            return uint32_t{(bits & 0x7f800000) == 0x7f800000};
          });
      break;
    default:
      return absl::OkStatus();  // see CheckContents
  }
  if (wrong == num_elements()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(who, "row ", wrong / matrix_.k, ", column ",
                   wrong % matrix_.k, ": the number is NaN or infinite"));
}

void CopyToFloat(const MappedTensor& tensor, float* destination) {
  for (size_t row = 0; row < tensor.rows(); ++row) {
    DequantizeRow(tensor.matrix(), row, destination + row * tensor.cols());
  }
}

}  // namespace troupe
