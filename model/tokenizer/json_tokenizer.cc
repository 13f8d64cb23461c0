#include "model/tokenizer/json_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/tokenizer/json_value.h"

namespace troupe::tokenizer {
namespace {

constexpr size_t kMaxFileBytes = size_t{128} << 20;

}  // namespace

class JsonTokenizer::Stream final : public Tokenizer::DecodeStream {
 public:
  Stream(const JsonTokenizer& tokenizer, const DecodeOptions& options)
      : tokenizer_(tokenizer), options_(options), stream_(tokenizer.decoder_) {}

  void Append(int32_t token_id, std::string* text) override {
    const std::string* token = tokenizer_.Text(token_id);
    if (token == nullptr) return;
    if (options_.skip_special_tokens && tokenizer_.IsSpecial(token_id)) return;
    stream_.Append(*token, text);
  }

  void Finish(std::string* text) override { stream_.Finish(text); }

 private:
  const JsonTokenizer& tokenizer_;
  const DecodeOptions options_;
  Decoder::Stream stream_;
};

JsonTokenizer::JsonTokenizer(Normalizer normalizer, PreTokenizer pre_tokenizer,
                             BpeModel model, AddedTokens added, Decoder decoder,
                             PostProcessor post_processor,
                             TokenizerConfig config)
    : normalizer_(std::move(normalizer)),
      pre_tokenizer_(std::move(pre_tokenizer)),
      model_(std::move(model)),
      added_(std::move(added)),
      decoder_(std::move(decoder)),
      post_processor_(std::move(post_processor)),
      config_(std::move(config)) {}

absl::StatusOr<std::unique_ptr<const Tokenizer>> JsonTokenizer::Load(
    const std::string& model_dir) {
  ABSL_ASSIGN_OR_RETURN(
      const JsonDocument document,
      JsonDocument::Load(absl::StrCat(model_dir, "/tokenizer.json"),
                         kMaxFileBytes));
  const JsonValue root = document.root();
  ABSL_ASSIGN_OR_RETURN(Normalizer normalizer,
                        Normalizer::Parse(root.Find("normalizer")));
  ABSL_ASSIGN_OR_RETURN(PreTokenizer pre_tokenizer,
                        PreTokenizer::Parse(root.Find("pre_tokenizer")));
  ABSL_ASSIGN_OR_RETURN(const JsonValue model_value, root.Get("model"));
  ABSL_ASSIGN_OR_RETURN(BpeModel model, BpeModel::Parse(model_value));
  ABSL_ASSIGN_OR_RETURN(AddedTokens added,
                        AddedTokens::Parse(root.Find("added_tokens"),
                                           model.vocabulary(), normalizer));
  ABSL_ASSIGN_OR_RETURN(Decoder decoder, Decoder::Parse(root.Find("decoder")));
  const int32_t end_id = std::max(model.vocabulary().end(), added.end());
  ABSL_ASSIGN_OR_RETURN(
      PostProcessor post_processor,
      PostProcessor::Parse(root.Find("post_processor"), end_id));
  const auto find_token = [&](absl::string_view text) {
    const int32_t id = added.FindText(text);
    return id != Vocabulary::kNone ? id : model.vocabulary().Find(text);
  };
  ABSL_ASSIGN_OR_RETURN(TokenizerConfig config,
                        TokenizerConfig::Load(model_dir, find_token, end_id));
  // The post-processor decides. Some checkpoints of this class have none that
  // adds ids and rely on the class, which reads add_bos_token.
  if (config.is_llama && post_processor.prefix.empty() &&
      post_processor.suffix.empty()) {
    config.ApplyTo(&post_processor.prefix, &post_processor.suffix);
  }
  return std::unique_ptr<const Tokenizer>(
      new JsonTokenizer(std::move(normalizer), std::move(pre_tokenizer),
                        std::move(model), std::move(added), std::move(decoder),
                        std::move(post_processor), std::move(config)));
}

absl::StatusOr<std::vector<int32_t>> JsonTokenizer::Encode(
    absl::string_view text, const EncodeOptions& options) const {
  ABSL_RETURN_IF_ERROR(CheckText(text));
  std::vector<int32_t> ids;
  if (options.add_special_tokens) ids = post_processor_.prefix;
  BpeModel::Scratch scratch;
  for (const Segment& raw :
       added_.Split(text, /*normalized=*/false, options.parse_special,
                    options.literal_at)) {
    if (raw.token_id != Vocabulary::kNone) {
      ids.push_back(raw.token_id);
      continue;
    }
    ABSL_ASSIGN_OR_RETURN(const std::string normalized,
                          normalizer_.Apply(raw.range.Of(text)));
    // Normalizing moves offsets: a part with a literal one has no control
    // tokens at all.
    const auto literal = std::lower_bound(
        options.literal_at.begin(), options.literal_at.end(), raw.range.begin);
    const bool parse_special =
        options.parse_special &&
        (literal == options.literal_at.end() || *literal >= raw.range.end);
    for (const Segment& segment :
         added_.Split(normalized, /*normalized=*/true, parse_special)) {
      if (segment.token_id != Vocabulary::kNone) {
        ids.push_back(segment.token_id);
        continue;
      }
      ABSL_RETURN_IF_ERROR(EncodePlain(
          segment.range.Of(normalized),
          raw.range.begin == 0 && segment.range.begin == 0, &scratch, &ids));
    }
  }
  if (options.add_special_tokens) {
    ids.insert(ids.end(), post_processor_.suffix.begin(),
               post_processor_.suffix.end());
  }
  return ids;
}

absl::Status JsonTokenizer::EncodePlain(absl::string_view text, bool at_start,
                                        BpeModel::Scratch* scratch,
                                        std::vector<int32_t>* ids) const {
  Pieces pieces;
  pieces.text = std::string(text);
  pieces.ranges = {{0, static_cast<uint32_t>(text.size())}};
  pieces.at_start = at_start;
  ABSL_RETURN_IF_ERROR(pre_tokenizer_.Apply(&pieces));
  for (const ByteRange& range : pieces.ranges) {
    model_.Encode(range.Of(pieces.text), scratch, ids);
  }
  return absl::OkStatus();
}

std::unique_ptr<Tokenizer::DecodeStream> JsonTokenizer::NewDecodeStream(
    const DecodeOptions& options) const {
  return std::make_unique<Stream>(*this, options);
}

int32_t JsonTokenizer::vocab_size() const {
  return std::max(model_.vocabulary().end(), added_.end());
}

const std::string* JsonTokenizer::Text(int32_t token_id) const {
  const AddedToken* added = added_.Find(token_id);
  return added != nullptr ? &added->text : model_.vocabulary().Text(token_id);
}

bool JsonTokenizer::IsKnown(int32_t token_id) const {
  return Text(token_id) != nullptr;
}

std::optional<int32_t> JsonTokenizer::bos_token_id() const {
  return config_.bos_token_id;
}

std::optional<int32_t> JsonTokenizer::eos_token_id() const {
  return config_.eos_token_id;
}

bool JsonTokenizer::IsSpecial(int32_t token_id) const {
  const AddedToken* added = added_.Find(token_id);
  return added != nullptr && added->special;
}

std::string JsonTokenizer::TokenBytes(int32_t token_id) const {
  const std::string* text = Text(token_id);
  return text == nullptr ? "" : decoder_.TokenBytes(*text);
}

std::string JsonTokenizer::name() const {
  return model_.byte_fallback() ? "bpe (byte fallback)" : "bpe (byte-level)";
}

}  // namespace troupe::tokenizer
