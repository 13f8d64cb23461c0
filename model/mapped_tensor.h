// A tensor of a checkpoint where it lies in its file.
#ifndef TROUPE_MODEL_MAPPED_TENSOR_H_
#define TROUPE_MODEL_MAPPED_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/dtype.h"
#include "common/stored_matrix.h"
#include "model/digest.h"
#include "model/safetensors.h"

namespace troupe {

// Bytes of a file, mapped read-only and privately: only the pages that hold
// them, unmapped when it goes. It outlives the SafetensorsFile. data() is a
// multiple of the element's size: bytes that are not so in their file (the
// format allows it), or with `copy`, are copied to memory instead. Not
// thread-safe while it is moved; the bytes may be read by any thread.
//
// A file that is truncated while it is mapped raises SIGBUS on access, as for
// every mapping: checkpoints are replaced by renaming, never written in place.
class MappedBytes {
 public:
  MappedBytes() = default;
  MappedBytes(MappedBytes&& other) noexcept;
  MappedBytes& operator=(MappedBytes&& other) noexcept;
  ~MappedBytes();

  static absl::StatusOr<MappedBytes> Map(const SafetensorsFile& file,
                                         const TensorInfo& info,
                                         bool copy = false);

  const uint8_t* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }
  // Tells the kernel that the bytes will be read soon (they need not be).
  void Prefetch() const;
  // Puts the pages into the page table at once, reading them where they are not
  // in memory: cheaper than a fault for every few of them.
  void Populate() const;
  // Gives the pages of bytes [begin, end) back to the kernel as far as no other
  // bytes share them; they are read again on access.
  void DropPages(size_t begin, size_t end) const;

 private:
  const uint8_t* data_ = nullptr;
  size_t num_bytes_ = 0;
  void* mapping_ = nullptr;  // page-aligned
  size_t mapping_bytes_ = 0;
  bool is_copy_ = false;  // the mapping is anonymous memory
};

// A tensor in any format of weights: floats, or numbers with their scales and
// zero points. Owns the mappings; thread contract as of MappedBytes.
class MappedTensor {
 public:
  MappedTensor() = default;

  WeightFormat format() const { return matrix_.format; }
  // Of floats; CHECKs that they are.
  DataType dtype() const;
  // As the model's config has it: [n, k] also where two numbers share a byte.
  const std::vector<size_t>& shape() const { return shape_; }
  // For the kernels. A vector is one row, a scalar one element.
  const StoredMatrix& matrix() const { return matrix_; }
  // The numbers, without scales and zero points.
  const void* data() const { return numbers_.data(); }
  // In the files, scales and zero points included.
  size_t num_bytes() const {
    return numbers_.num_bytes() + scales_.num_bytes() + zeros_.num_bytes();
  }
  size_t num_elements() const { return matrix_.n * matrix_.k; }
  size_t rows() const { return matrix_.n; }
  size_t cols() const { return matrix_.k; }

  // As of MappedBytes, all parts.
  void Prefetch() const;
  void Populate() const;
  void DropPages() const;
  // Those of the numbers of rows [begin, end).
  void DropPages(size_t begin, size_t end) const;

  // Format, shape and every byte.
  void AddTo(Digest& digest) const;

 private:
  friend class Checkpoint;
  // Scales must be finite and not negative, zero points at most 15, int8
  // numbers not -128. `who` starts the message of an error. Reads everything
  // of a quantised tensor.
  absl::Status CheckContents(const std::string& who) const;
  // Of floats: neither NaN nor infinite.
  absl::Status CheckFinite(const std::string& who) const;

  std::vector<size_t> shape_;
  StoredMatrix matrix_;
  MappedBytes numbers_, scales_, zeros_;
};

// Converts to float: exact for all formats. `destination` has
// tensor.num_elements() elements.
void CopyToFloat(const MappedTensor& tensor, float* destination);

}  // namespace troupe

#endif  // TROUPE_MODEL_MAPPED_TENSOR_H_
