#include "model/tokenizer/tokenizer.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/tokenizer/json_tokenizer.h"
#include "model/tokenizer/sentencepiece_tokenizer.h"
#include "model/tokenizer/utf8.h"

namespace troupe {

absl::StatusOr<std::unique_ptr<const Tokenizer>> Tokenizer::Load(
    const std::string& model_dir) {
  auto loaded = tokenizer::JsonTokenizer::Load(model_dir);
  if (!absl::IsNotFound(loaded.status())) return loaded;
  loaded = tokenizer::SentencePieceTokenizer::Load(model_dir);
  if (!absl::IsNotFound(loaded.status())) return loaded;
  return absl::NotFoundError(
      absl::StrCat(model_dir, ": neither tokenizer.json nor tokenizer.model"));
}

absl::StatusOr<std::string> Tokenizer::Decode(
    absl::Span<const int32_t> token_ids, const DecodeOptions& options) const {
  const std::unique_ptr<DecodeStream> stream = NewDecodeStream(options);
  std::string text;
  for (size_t i = 0; i < token_ids.size(); ++i) {
    if (!IsKnown(token_ids[i])) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token_ids[", i, "]: ", token_ids[i], " is no token of this model"));
    }
    stream->Append(token_ids[i], &text);
  }
  stream->Finish(&text);
  return text;
}

absl::Status Tokenizer::CheckText(absl::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text: ", text.size(), " bytes, at most ", kMaxTextBytes,
                     " are allowed"));
  }
  const size_t invalid = tokenizer::FindInvalidUtf8(text);
  if (invalid < text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("text: invalid UTF-8 at byte ", invalid));
  }
  return absl::OkStatus();
}

}  // namespace troupe
