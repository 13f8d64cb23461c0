// The tokenizer of a tokenizer.model.
//
// The format is SentencePiece's (Kudo and Richardson, "SentencePiece", 2018),
// and so are the ids. Its library is not linked: see
// docs/decisions/0004-sentencepiece-without-its-library.md.
#ifndef TROUPE_MODEL_TOKENIZER_SENTENCEPIECE_TOKENIZER_H_
#define TROUPE_MODEL_TOKENIZER_SENTENCEPIECE_TOKENIZER_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/byte_range.h"
#include "model/tokenizer/prefix_matcher.h"
#include "model/tokenizer/sentencepiece_model.pb.h"
#include "model/tokenizer/sentencepiece_normalizer.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/tokenizer_config.h"
#include "model/tokenizer/vocabulary.h"

namespace troupe::tokenizer {

// Immutable and thread-safe.
class SentencePieceTokenizer final : public Tokenizer {
 public:
  // NotFound when the folder has no tokenizer.model. BOS is added unless
  // tokenizer_config.json says otherwise, EOS only when it says so.
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
  std::string name() const override { return "sentencepiece"; }

 private:
  class Stream;
  using Piece = sentencepiece::Model::Piece;

  // A piece of normalized text and its id.
  struct Result {
    ByteRange range;
    int32_t id;
  };

  SentencePieceTokenizer() = default;

  absl::Status Init(const sentencepiece::Model& model);
  absl::Status AddPieces(const sentencepiece::Model& model);

  Piece::Type Type(int32_t id) const { return types_[id]; }
  // A piece that text can become, or kNone.
  int32_t FindPiece(absl::string_view text) const;
  // Text without control tokens.
  void EncodePlain(absl::string_view text, std::vector<int32_t>* ids) const;
  // O(n log n); O(n) times the length of the longest piece.
  std::vector<Result> EncodeBpe(absl::string_view text) const;
  std::vector<Result> EncodeUnigram(absl::string_view text) const;

  // Constant after Load.
  Vocabulary vocabulary_;
  std::vector<Piece::Type> types_;  // [vocab_size]
  std::vector<float> scores_;       // [vocab_size]
  std::array<int32_t, 256> byte_ids_;
  PrefixMatcher pieces_;        // those that text can become
  PrefixMatcher user_defined_;  // those that are always one piece
  PrefixMatcher control_;
  SentencePieceNormalizer normalizer_;
  bool is_bpe_ = false;
  bool byte_fallback_ = false;
  int32_t unk_id_ = Vocabulary::kNone;
  float min_score_ = 0;  // of normal pieces
  float max_score_ = 0;
  std::string unk_surface_;
  TokenizerConfig config_;
  std::vector<int32_t> prefix_;
  std::vector<int32_t> suffix_;
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_SENTENCEPIECE_TOKENIZER_H_
