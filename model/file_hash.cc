#include "model/file_hash.h"

#include <fstream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/digest.h"

namespace troupe {

absl::StatusOr<std::string> FileHash(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  std::vector<char> bytes(size_t{1} << 20);
  Digest digest;
  while (file) {
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    digest.Update(bytes.data(), static_cast<size_t>(file.gcount()));
  }
  if (!file.eof()) {
    return absl::DataLossError(absl::StrCat("cannot read ", path));
  }
  return digest.Hex();
}

}  // namespace troupe
