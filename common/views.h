// Views on row-major matrices that somebody else owns.
#ifndef TROUPE_COMMON_VIEWS_H_
#define TROUPE_COMMON_VIEWS_H_

#include <cstddef>

namespace troupe {

// [rows, cols], `stride` elements from one row to the next (stride >= cols).
template <typename T>
struct MatrixView {
  T* data = nullptr;
  size_t rows = 0;
  size_t cols = 0;
  size_t stride = 0;

  MatrixView() = default;
  MatrixView(T* d, size_t r, size_t c) : MatrixView(d, r, c, c) {}
  MatrixView(T* d, size_t r, size_t c, size_t s)
      : data(d), rows(r), cols(c), stride(s) {}
  // A view of mutable elements is a view of const ones.
  template <typename U>
  requires(!__is_same(T, U) && __is_same(T, const U))
      MatrixView(const MatrixView<U>& other)  // NOLINT: implicit on purpose
      : MatrixView(other.data, other.rows, other.cols, other.stride) {}

  T* row(size_t r) const { return data + r * stride; }
  MatrixView Rows(size_t begin, size_t end) const {
    return MatrixView(row(begin), end - begin, cols, stride);
  }
};

using FloatMatrix = MatrixView<float>;
using ConstFloatMatrix = MatrixView<const float>;

}  // namespace troupe

#endif  // TROUPE_COMMON_VIEWS_H_
