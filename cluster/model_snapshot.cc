#include "cluster/model_snapshot.h"

#include <xxhash.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace troupe {

ModelSnapshot::ModelSnapshot(size_t num_experts, std::vector<uint64_t> keys,
                             std::string labels)
    : num_experts_(num_experts),
      keys_(std::move(keys)),
      labels_(std::move(labels)),
      id_(XXH3_64bits(keys_.data(), keys_.size() * sizeof(uint64_t))) {}

std::string ModelSnapshot::id_text() const {
  return absl::StrCat(absl::Hex(id_, absl::kZeroPad16));
}

std::string ModelSnapshot::Name() const {
  return absl::StrCat(id_text(), ":", labels_);
}

bool ParseSnapshotName(absl::string_view name, uint64_t* id,
                       std::string* labels) {
  constexpr size_t kDigits = 16;
  if (name.size() <= kDigits || name[kDigits] != ':' ||
      !absl::SimpleHexAtoi(name.substr(0, kDigits), id)) {
    return false;
  }
  *labels = std::string(name.substr(kDigits + 1));
  return true;
}

}  // namespace troupe
