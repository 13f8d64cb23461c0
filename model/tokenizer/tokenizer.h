// Text to token ids and back, for checkpoints in Hugging Face format.
//
// Two file formats: tokenizer.json (byte-level or byte-fallback BPE) and
// tokenizer.model (SentencePiece). The ids and texts are those of the
// `tokenizers` and `sentencepiece` packages: see tests/goldens/tokenizers.
#ifndef TROUPE_MODEL_TOKENIZER_TOKENIZER_H_
#define TROUPE_MODEL_TOKENIZER_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace troupe {

// The tokenizer of one checkpoint. Owns all that it needs; the files are not
// read again after Load. Immutable and thread-safe.
class Tokenizer {
 public:
  // The longest text that Encode takes.
  static constexpr size_t kMaxTextBytes = size_t{16} << 20;

  struct EncodeOptions {
    // Add what the checkpoint puts around a text, such as the BOS token.
    bool add_special_tokens = true;
    // Text such as "<|endoftext|>" becomes the control token. Off for text of
    // users, who could otherwise forge turns of a chat.
    bool parse_special = false;
    // Byte offsets, ascending, at which no control token begins all the same:
    // where text of users came into one with control tokens.
    std::vector<size_t> literal_at = {};
  };

  struct DecodeOptions {
    // Leave out control tokens.
    bool skip_special_tokens = true;
  };

  // The state of one decoding; StreamDecoder is its public face. One thread
  // at a time. Refers to the tokenizer that made it, which must outlive it.
  class DecodeStream {
   public:
    virtual ~DecodeStream() = default;
    // Appends to `text` what is now certain: whole characters only, and
    // nothing that a later token can change. Unknown ids are left out.
    virtual void Append(int32_t token_id, std::string* text) = 0;
    // The end: appends what was held back, incomplete bytes as U+FFFD.
    virtual void Finish(std::string* text) = 0;
  };

  virtual ~Tokenizer() = default;

  // Loads tokenizer.json, else tokenizer.model, of a checkpoint folder, with
  // the BOS and EOS settings of tokenizer_config.json or else config.json.
  // Errors name the file and the JSON path: InvalidArgument for contents,
  // Unimplemented for a construct that this code does not know, NotFound when
  // there is no tokenizer.
  static absl::StatusOr<std::unique_ptr<const Tokenizer>> Load(
      const std::string& model_dir);

  // InvalidArgument: invalid UTF-8, with the byte offset; a text that is too
  // long.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options) const = 0;

  // InvalidArgument: an unknown id, which it names. Bytes that are not UTF-8
  // become U+FFFD.
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> token_ids,
                                     const DecodeOptions& options) const;

  virtual std::unique_ptr<DecodeStream> NewDecodeStream(
      const DecodeOptions& options) const = 0;

  // One more than the largest id, added tokens included. A checkpoint may
  // have more logits than this, and ids below it may be unused.
  virtual int32_t vocab_size() const = 0;

  // Whether the id stands for a token. False for any id out of range.
  virtual bool IsKnown(int32_t token_id) const = 0;

  virtual std::optional<int32_t> bos_token_id() const = 0;
  virtual std::optional<int32_t> eos_token_id() const = 0;

  // A control token, such as BOS; false for unknown ids.
  virtual bool IsSpecial(int32_t token_id) const = 0;

  // The bytes of one token as it stands in the middle of a text. They may be
  // part of a UTF-8 character. Empty for unknown ids.
  virtual std::string TokenBytes(int32_t token_id) const = 0;

  // For people: "bpe (byte-level)", "bpe (byte fallback)", "sentencepiece".
  virtual std::string name() const = 0;

 protected:
  // What every Encode refuses.
  static absl::Status CheckText(absl::string_view text);
};

// Turns the tokens of one stream into text deltas. The concatenation of all
// deltas, that of Finish included, equals Tokenizer::Decode of all tokens, and
// no delta ends inside a UTF-8 character. Ids that the tokenizer does not know
// (a checkpoint may have more logits than tokens) give no text.
//
// Refers to the tokenizer, which must outlive it. One thread at a time.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, Tokenizer::DecodeOptions options)
      : stream_(tokenizer.NewDecodeStream(options)) {}

  std::string Append(int32_t token_id) {
    std::string delta;
    stream_->Append(token_id, &delta);
    return delta;
  }

  // Call once, after the last token.
  std::string Finish() {
    std::string delta;
    stream_->Finish(&delta);
    return delta;
  }

 private:
  std::unique_ptr<Tokenizer::DecodeStream> stream_;
};

}  // namespace troupe

#endif  // TROUPE_MODEL_TOKENIZER_TOKENIZER_H_
