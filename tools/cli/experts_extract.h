// A file of experts out of a checkpoint.
#ifndef TROUPE_TOOLS_CLI_EXPERTS_EXTRACT_H_
#define TROUPE_TOOLS_CLI_EXPERTS_EXTRACT_H_

#include <string>

#include "absl/status/statusor.h"

namespace troupe {

struct ExtractOptions {
  std::string model_dir;
  std::string file;
  std::string experts;  // "0-3,6"; empty: all
  std::string layers;
};

// Writes the experts' tensors as they are stored, and the content hash of each
// expert into the file's metadata. Returns a line that says what was written.
absl::StatusOr<std::string> ExtractExperts(const ExtractOptions& options);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_EXPERTS_EXTRACT_H_
