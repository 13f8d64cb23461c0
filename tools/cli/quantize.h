// From a checkpoint of floats to one whose matrices are integers with scales.
#ifndef TROUPE_TOOLS_CLI_QUANTIZE_H_
#define TROUPE_TOOLS_CLI_QUANTIZE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "model/tensor_catalog.h"
#include "tools/cli/quantize_plan.h"

namespace troupe {

struct QuantizeOptions {
  std::string model_dir;
  std::string output_dir;  // made if needed
  QuantizeRequest request;
  uint64_t max_shard_bytes = uint64_t{1} << 30;  // the unit of going on
  size_t num_threads = 0;                        // 0: all that may be used
  // Source bytes done and in all, after every few megabytes; may be empty.
  std::function<void(uint64_t done, uint64_t total)> progress;
};

// What became of the tensors of one class.
struct QuantizedClass {
  uint64_t num_weights = 0;
  uint64_t bytes_before = 0;
  uint64_t bytes_after = 0;
  // Over the weights that were quantised.
  double squared_error = 0;
  double squared_sum = 0;
};

struct QuantizeReport {
  std::array<QuantizedClass, std::size(kTensorClasses)> classes;
  size_t num_shards = 0;
  size_t num_shards_found = 0;  // complete from a run before

  std::string ToText() const;
};

// Writes the quantised checkpoint file by file, each under a temporary name
// until it is complete, config.json last. Files that an earlier run with the
// same request and the same source completed are left as they are; a folder
// with anything else in it that a checkpoint would have is refused
// (AlreadyExists), and so is one at which another process is at work. Besides
// the bytes of a few thousand rows it holds the scales of one tensor.
// InvalidArgument that names file, tensor and row where the source has NaN,
// infinity or numbers beyond the formats.
absl::StatusOr<QuantizeReport> Quantize(const QuantizeOptions& options);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_QUANTIZE_H_
