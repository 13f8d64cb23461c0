// The tokenizer of a tokenizer.json.
#ifndef TROUPE_MODEL_TOKENIZER_JSON_TOKENIZER_H_
#define TROUPE_MODEL_TOKENIZER_JSON_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe_model.h"
#include "model/tokenizer/decoder.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/post_processor.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/tokenizer_config.h"

namespace troupe::tokenizer {

// A text becomes ids in five steps: added tokens are cut out, the rest is
// normalized, split into pieces, merged, and control tokens are put around it.
// Immutable and thread-safe.
class JsonTokenizer final : public Tokenizer {
 public:
  // NotFound when the folder has no tokenizer.json.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(
      const std::string& model_dir);

  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options) const override;
  std::unique_ptr<DecodeStream> NewDecodeStream(
      const DecodeOptions& options) const override;
  int32_t vocab_size() const override;
  bool IsKnown(int32_t token_id) const override;
  std::optional<int32_t> bos_token_id() const override;
  std::optional<int32_t> eos_token_id() const override;
  bool IsSpecial(int32_t token_id) const override;
  std::string TokenBytes(int32_t token_id) const override;
  std::string name() const override;

 private:
  class Stream;

  JsonTokenizer(Normalizer normalizer, PreTokenizer pre_tokenizer,
                BpeModel model, AddedTokens added, Decoder decoder,
                PostProcessor post_processor, TokenizerConfig config);

  // The text of a token; null for unknown ids.
  const std::string* Text(int32_t token_id) const;
  // Text without added tokens, already normalized.
  absl::Status EncodePlain(absl::string_view text, bool at_start,
                           BpeModel::Scratch* scratch,
                           std::vector<int32_t>* ids) const;

  const Normalizer normalizer_;
  const PreTokenizer pre_tokenizer_;
  const BpeModel model_;
  const AddedTokens added_;
  const Decoder decoder_;
  const PostProcessor post_processor_;
  const TokenizerConfig config_;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_JSON_TOKENIZER_H_
