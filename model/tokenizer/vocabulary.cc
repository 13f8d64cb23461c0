#include "model/tokenizer/vocabulary.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace troupe::tokenizer {

absl::Status Vocabulary::Add(absl::string_view text, int64_t id) {
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token \"", absl::Utf8SafeCEscape(text.substr(0, 200)), "\": ", what));
  };
  if (text.size() > kMaxTokenBytes) {
    return error(absl::StrCat("longer than ", kMaxTokenBytes, " bytes"));
  }
  if (id < 0 || id > kMaxId) {
    return error(absl::StrCat("id ", id, " is not in the range 0 to ", kMaxId));
  }
  if (const std::string* other = Text(static_cast<int32_t>(id))) {
    return error(absl::StrCat("id ", id, " is that of \"",
                              absl::Utf8SafeCEscape(*other), "\" too"));
  }
  const auto [it, inserted] =
      ids_.try_emplace(std::string(text), static_cast<int32_t>(id));
  if (!inserted) {
    return error(absl::StrCat("has the ids ", it->second, " and ", id));
  }
  if (id >= end()) texts_.resize(id + 1, nullptr);
  texts_[id] = &it->first;
  return absl::OkStatus();
}

}  // namespace troupe::tokenizer
