#include "kernels/reference/expert_ffn.h"

#include <cmath>
#include <cstddef>
#include <vector>

namespace troupe::reference {
namespace {

template <typename T>
double Dot(const T* x, const float* w, size_t size) {
  double sum = 0;
  for (size_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]) * w[i];
  return sum;
}

void GatedMlpRow(const float* input, const GatedMlpWeights& weights,
                 float* output) {
  const size_t hidden_size = weights.gate.cols;
  const size_t intermediate_size = weights.gate.rows;
  std::vector<double> activations(intermediate_size);
  for (size_t i = 0; i < intermediate_size; ++i) {
    const double gate = Dot(input, weights.gate.row(i), hidden_size);
    const double up = Dot(input, weights.up.row(i), hidden_size);
    activations[i] = gate / (1 + std::exp(-gate)) * up;
  }
  for (size_t c = 0; c < hidden_size; ++c) {
    output[c] = static_cast<float>(
        Dot(activations.data(), weights.down.row(c), intermediate_size));
  }
}

}  // namespace

void GatedMlp(ConstFloatMatrix input, const GatedMlpWeights& weights,
              FloatMatrix output) {
  for (size_t r = 0; r < input.rows; ++r) {
    GatedMlpRow(input.row(r), weights, output.row(r));
  }
}

void GroupedGatedMlp(ConstFloatMatrix hidden_states,
                     std::span<const uint32_t> row_of_copy,
                     std::span<const uint32_t> expert_offsets,
                     std::span<const GatedMlpWeights> experts,
                     FloatMatrix output) {
  for (size_t e = 0; e < experts.size(); ++e) {
    for (size_t copy = expert_offsets[e]; copy < expert_offsets[e + 1];
         ++copy) {
      GatedMlpRow(hidden_states.row(row_of_copy[copy]), experts[e],
                  output.row(copy));
    }
  }
}

}  // namespace troupe::reference
