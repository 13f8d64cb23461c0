// The post-processors of tokenizer.json: the control tokens around a text.
#ifndef TROUPE_MODEL_TOKENIZER_POST_PROCESSOR_H_
#define TROUPE_MODEL_TOKENIZER_POST_PROCESSOR_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer/json_value.h"

namespace troupe::tokenizer {

// What is put around the ids of one text. A value.
struct PostProcessor {
  // No value: nothing. Ids are below `end_id`.
  static absl::StatusOr<PostProcessor> Parse(
      const std::optional<JsonValue>& value, int32_t end_id);

  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_POST_PROCESSOR_H_
