#include "kernels/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace troupe::reference {

void AttentionRow(std::span<const float> query, ConstFloatMatrix keys,
                  ConstFloatMatrix values, size_t num_heads,
                  size_t num_kv_heads, float scale, size_t window,
                  std::span<float> output) {
  const size_t head_dim = query.size() / num_heads;
  const size_t end = keys.rows;
  const size_t begin = window == 0 || end < window ? 0 : end - window;
  for (size_t h = 0; h < num_heads; ++h) {
    const size_t kv_column = h / (num_heads / num_kv_heads) * head_dim;
    std::vector<double> scores(end);
    double max = -std::numeric_limits<double>::infinity();
    for (size_t p = begin; p < end; ++p) {
      double sum = 0;
      for (size_t d = 0; d < head_dim; ++d) {
        sum += static_cast<double>(query[h * head_dim + d]) *
               keys.row(p)[kv_column + d];
      }
      scores[p] = sum * scale;
      max = std::max(max, scores[p]);
    }
    double total = 0;
    for (size_t p = begin; p < end; ++p) {
      scores[p] = std::exp(scores[p] - max);
      total += scores[p];
    }
    for (size_t d = 0; d < head_dim; ++d) {
      double sum = 0;
      for (size_t p = begin; p < end; ++p) {
        sum += scores[p] * values.row(p)[kv_column + d];
      }
      output[h * head_dim + d] = static_cast<float>(sum / total);
    }
  }
}

}  // namespace troupe::reference
