// Weights in the layout that the CPU GEMM kernels read.
//
// A weight matrix of a checkpoint is [n, k], row-major: n outputs, k inputs.
// Packed, it is a row of panels of kPanelCols outputs; a panel holds, for each
// k, the weights of its outputs side by side, so that vector lanes run across
// the outputs and each output is one sequential chain along k (the exactness
// contract). Outputs past n are zero. A panel's line for one k holds float16
// and float32 in the order of the outputs; of bfloat16, 32-bit word j has
// output j in its lower and output j + 16 in its upper half.
//
// A panel of quantised weights holds, group after group,
// - int8: for each four k, 32-bit word j = output j, byte i = k + i. That is
//   the order that the dot-product instructions read;
//   int4: for each eight k, word j = output j, byte i = k + i in its lower and
//   k + 4 + i in its upper half;
// - the scales of the outputs, float16;
// - of int4 with zero points these, a byte each.
#ifndef TROUPE_KERNELS_PACKED_MATRIX_H_
#define TROUPE_KERNELS_PACKED_MATRIX_H_

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "common/stored_matrix.h"
#include "common/thread_pool.h"

namespace troupe {

// Immutable after construction, movable, thread-safe to read. Owns its memory
// (aligned to 64 bytes, huge pages asked for where it is large).
class PackedMatrix {
 public:
  static constexpr size_t kPanelCols = 32;

  PackedMatrix() = default;
  PackedMatrix(PackedMatrix&& other) noexcept;
  PackedMatrix& operator=(PackedMatrix&& other) noexcept;
  ~PackedMatrix();

  // `weights` [n, k] of `dtype`, row-major, n and k > 0, no alignment needed.
  // The numbers keep their format.
  static PackedMatrix Pack(DataType dtype, const void* weights, size_t n,
                           size_t k, ThreadPool& pool);

  // Gate and up projections [n, k] of a gated MLP, their panels alternating
  // (gate 0, up 0, gate 1, ...), for GatedMlp. n() is that of one of them.
  static PackedMatrix PackGateUp(DataType dtype, const void* gate,
                                 const void* up, size_t n, size_t k,
                                 ThreadPool& pool);

  // The same of matrices as a checkpoint stores them, floats or quantised: k is
  // a multiple of the group size, which is 32 or 64. Gate and up have one
  // format, shape and group size.
  static PackedMatrix Pack(const StoredMatrix& matrix, ThreadPool& pool);
  static PackedMatrix PackGateUp(const StoredMatrix& gate,
                                 const StoredMatrix& up, ThreadPool& pool);

  bool empty() const { return data_ == nullptr; }
  WeightFormat format() const { return format_; }
  // 0 where the format is not quantised.
  size_t group_size() const { return group_size_; }
  size_t n() const { return n_; }
  size_t k() const { return k_; }
  bool is_gate_up() const { return is_gate_up_; }
  size_t num_panels() const {
    return (n_ + kPanelCols - 1) / kPanelCols * (is_gate_up_ ? 2 : 1);
  }
  // Inputs and bytes of a step along k, as a panel holds them: a group, or one
  // input of a format that is not quantised.
  size_t k_per_step() const { return group_size_ == 0 ? 1 : group_size_; }
  size_t step_bytes() const { return step_bytes_; }
  size_t panel_bytes() const { return k_ / k_per_step() * step_bytes_; }
  size_t num_bytes() const { return num_panels() * panel_bytes(); }
  const uint8_t* panel(size_t i) const { return data_ + i * panel_bytes(); }

 private:
  // The panels of `num_sources` matrices of one format and shape, alternating.
  static PackedMatrix PackAll(const StoredMatrix* sources, size_t num_sources,
                              ThreadPool& pool);

  WeightFormat format_ = WeightFormat::kF32;
  bool is_gate_up_ = false;
  size_t group_size_ = 0;
  size_t n_ = 0;
  size_t k_ = 0;
  size_t step_bytes_ = 0;
  uint8_t* data_ = nullptr;
};

}  // namespace troupe

#endif  // TROUPE_KERNELS_PACKED_MATRIX_H_
