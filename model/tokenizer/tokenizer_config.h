// What the files beside the tokenizer say about BOS and EOS.
#ifndef TROUPE_MODEL_TOKENIZER_TOKENIZER_CONFIG_H_
#define TROUPE_MODEL_TOKENIZER_TOKENIZER_CONFIG_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace troupe::tokenizer {

struct TokenizerConfig {
  // tokenizer_config.json, else config.json, of a checkpoint folder. A file
  // that is not there counts as empty. `find_token` gives the id of a token's
  // text, or -1; ids are below `end_id`.
  static absl::StatusOr<TokenizerConfig> Load(
      const std::string& model_dir,
      const std::function<int32_t(absl::string_view)>& find_token,
      int32_t end_id);

  // Makes the ids around a text agree with add_bos and add_eos, where they
  // are set.
  void ApplyTo(std::vector<int32_t>* prefix,
               std::vector<int32_t>* suffix) const;

  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> eos_token_id;
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  // tokenizer_class is LlamaTokenizer or LlamaTokenizerFast.
  bool is_llama = false;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_TOKENIZER_CONFIG_H_
