#include "model/tokenizer/sentencepiece_tokenizer.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <queue>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "model/strict_json.h"
#include "model/tokenizer/decoder.h"
#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {
namespace {

constexpr size_t kMaxFileBytes = size_t{64} << 20;
// Bounds the time per byte of EncodeUnigram.
constexpr size_t kMaxPieceBytes = 1024;
// How much less than the worst piece an unknown character is worth.
constexpr float kUnknownPenalty = 10.0f;

}  // namespace

// Where the library looks at all pieces at once, this holds back what a later
// piece can change: the bytes of a character that is not complete.
class SentencePieceTokenizer::Stream final : public Tokenizer::DecodeStream {
 public:
  Stream(const SentencePieceTokenizer& tokenizer, const DecodeOptions& options)
      : tokenizer_(tokenizer), options_(options) {}

  void Append(int32_t token_id, std::string* text) override {
    if (!tokenizer_.IsKnown(token_id)) return;
    const std::string& piece = *tokenizer_.vocabulary_.Text(token_id);
    switch (tokenizer_.Type(token_id)) {
      case Piece::BYTE:
        if (const auto byte = ParseByteToken(piece)) {
          bytes_.push_back(*byte);
          EmitBytes(/*end=*/false, text);
        }
        return;
      case Piece::CONTROL:
        if (options_.skip_special_tokens) {
          EmitBytes(/*end=*/true, text);
          EndFirst();
          return;
        }
        Emit(piece, text);
        return;
      case Piece::UNKNOWN:
        Emit(tokenizer_.unk_surface_, text);
        return;
      default:
        break;
    }
    EmitBytes(/*end=*/true, text);
    EndFirst();
    absl::string_view rest = piece;
    if (at_start_ && tokenizer_.normalizer_.strips_first_space()) {
      const bool had_space = absl::ConsumePrefix(&rest, kSpaceSymbol);
      // Where all spaces at the start are removed the next piece may have one
      // too.
      stripped_ =
          had_space && !tokenizer_.normalizer_.strips_all_first_spaces();
    }
    Emit(absl::StrReplaceAll(rest, {{kSpaceSymbol, " "}}), text);
  }

  void Finish(std::string* text) override { EmitBytes(/*end=*/true, text); }

 private:
  void EndFirst() {
    if (stripped_ || emitted_) at_start_ = false;
  }

  void Emit(absl::string_view part, std::string* text) {
    EmitBytes(/*end=*/true, text);
    emitted_ |= !part.empty();
    absl::StrAppend(text, part);
  }

  // Writes the characters that are complete. At the end of a run of bytes, and
  // where bytes are no character, each byte is one U+FFFD.
  void EmitBytes(bool end, std::string* text) {
    absl::string_view rest = bytes_;
    while (!rest.empty()) {
      const Utf8Step step = NextUtf8(rest);
      if (step.kind == Utf8Step::kIncomplete && !end) break;
      const bool good = step.kind == Utf8Step::kCharacter;
      const size_t num_bytes = good ? step.num_bytes : 1;
      absl::StrAppend(text,
                      good ? rest.substr(0, num_bytes) : kReplacementCharacter);
      emitted_ = true;
      rest.remove_prefix(num_bytes);
    }
    bytes_ = std::string(rest);
  }

  const SentencePieceTokenizer& tokenizer_;
  const DecodeOptions options_;
  std::string bytes_;      // of byte pieces, not yet text
  bool at_start_ = true;   // a space at the start of a piece is not text
  bool stripped_ = false;  // such a space was seen
  bool emitted_ = false;   // some text was written
};

absl::StatusOr<std::unique_ptr<const Tokenizer>> SentencePieceTokenizer::Load(
    const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/tokenizer.model");
  ABSL_ASSIGN_OR_RETURN(const std::string bytes,
                        ReadSmallFile(path, kMaxFileBytes));
  sentencepiece::Model model;
  if (!model.ParseFromString(bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a SentencePiece model"));
  }
  std::unique_ptr<SentencePieceTokenizer> tokenizer(new SentencePieceTokenizer);
  const absl::Status status = tokenizer->Init(model);
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(path, ": ", status.message()));
  }
  const auto find_token = [&](absl::string_view text) {
    return tokenizer->vocabulary_.Find(text);
  };
  TokenizerConfig& config = tokenizer->config_;
  ABSL_ASSIGN_OR_RETURN(config, TokenizerConfig::Load(model_dir, find_token,
                                                      tokenizer->vocab_size()));
  const auto control = [&](int32_t id, const std::string& text) {
    const bool valid = tokenizer->IsSpecial(id);
    if (!valid) id = find_token(text);
    return tokenizer->IsSpecial(id) ? std::optional<int32_t>(id) : std::nullopt;
  };
  if (!config.bos_token_id) {
    config.bos_token_id =
        control(model.trainer().bos_id(), model.trainer().bos_text());
  }
  if (!config.eos_token_id) {
    config.eos_token_id =
        control(model.trainer().eos_id(), model.trainer().eos_text());
  }
  if (!config.add_bos) config.add_bos = true;
  config.ApplyTo(&tokenizer->prefix_, &tokenizer->suffix_);
  return std::unique_ptr<const Tokenizer>(std::move(tokenizer));
}

absl::Status SentencePieceTokenizer::Init(const sentencepiece::Model& model) {
  const sentencepiece::Trainer& trainer = model.trainer();
  if (trainer.algorithm() != sentencepiece::Trainer::BPE &&
      trainer.algorithm() != sentencepiece::Trainer::UNIGRAM) {
    return absl::UnimplementedError("model type: neither BPE nor unigram");
  }
  if (trainer.whitespace_as_suffix()) {
    return absl::UnimplementedError("treat_whitespace_as_suffix");
  }
  if (!model.denormalizer().replacements().empty()) {
    return absl::UnimplementedError("a denormalizer");
  }
  is_bpe_ = trainer.algorithm() == sentencepiece::Trainer::BPE;
  byte_fallback_ = trainer.byte_fallback();
  unk_surface_ = trainer.unk_surface();
  if (FindInvalidUtf8(unk_surface_) != unk_surface_.size()) {
    return absl::InvalidArgumentError("unk_surface: not UTF-8");
  }
  ABSL_RETURN_IF_ERROR(AddPieces(model));
  ABSL_ASSIGN_OR_RETURN(normalizer_, SentencePieceNormalizer::Parse(
                                         model.normalizer(), user_defined_));
  return absl::OkStatus();
}

absl::Status SentencePieceTokenizer::AddPieces(
    const sentencepiece::Model& model) {
  byte_ids_.fill(Vocabulary::kNone);
  min_score_ = FLT_MAX;
  max_score_ = FLT_MIN;
  for (int32_t id = 0; id < model.pieces_size(); ++id) {
    const Piece& piece = model.pieces(id);
    const auto error = [&](absl::string_view what) {
      return absl::InvalidArgumentError(
          absl::StrCat("pieces[", id, "]: ", what));
    };
    if (piece.text().empty()) return error("is empty");
    if (piece.text().size() > kMaxPieceBytes) {
      return error(absl::StrCat("longer than ", kMaxPieceBytes, " bytes"));
    }
    if (FindInvalidUtf8(piece.text()) != piece.text().size()) {
      return error("is not UTF-8");
    }
    if (!std::isfinite(piece.score())) return error("score is not finite");
    const absl::Status added = vocabulary_.Add(piece.text(), id);
    if (!added.ok()) return error(added.message());
    types_.push_back(piece.type());
    scores_.push_back(piece.score());
    switch (piece.type()) {
      case Piece::NORMAL:
        min_score_ = std::min(min_score_, piece.score());
        max_score_ = std::max(max_score_, piece.score());
        pieces_.Add(piece.text(), id);
        break;
      case Piece::USER_DEFINED:
        user_defined_.Add(piece.text(), id);
        pieces_.Add(piece.text(), id);
        break;
      case Piece::UNUSED:
        pieces_.Add(piece.text(), id);
        break;
      case Piece::UNKNOWN:
        if (unk_id_ != Vocabulary::kNone) return error("a second unknown");
        unk_id_ = id;
        break;
      case Piece::CONTROL:
        control_.Add(piece.text(), id);
        break;
      case Piece::BYTE: {
        const auto byte = ParseByteToken(piece.text());
        if (!byte) return error("is no byte such as <0x0A>");
        byte_ids_[static_cast<uint8_t>(*byte)] = id;
        break;
      }
    }
  }
  if (unk_id_ == Vocabulary::kNone) {
    return absl::InvalidArgumentError("pieces: there is no unknown piece");
  }
  if (byte_fallback_ &&
      std::count(byte_ids_.begin(), byte_ids_.end(), Vocabulary::kNone) > 0) {
    return absl::InvalidArgumentError(
        "pieces: byte_fallback without all 256 byte pieces");
  }
  return absl::OkStatus();
}

int32_t SentencePieceTokenizer::FindPiece(absl::string_view text) const {
  const int32_t id = vocabulary_.Find(text);
  if (id == Vocabulary::kNone) return id;
  const Piece::Type type = Type(id);
  return type == Piece::NORMAL || type == Piece::USER_DEFINED ||
                 type == Piece::UNUSED
             ? id
             : Vocabulary::kNone;
}

// Merges the neighbours whose joined piece has the highest score, leftmost
// first, until no two neighbours are a piece.
std::vector<SentencePieceTokenizer::Result> SentencePieceTokenizer::EncodeBpe(
    absl::string_view text) const {
  struct Symbol {
    ByteRange range;  // empty: merged into the one before
    int32_t previous;
    int32_t next;  // -1: none
    bool frozen;   // a user-defined piece
  };
  struct Candidate {
    float score;
    int32_t left;
    int32_t right;
    uint32_t num_bytes;
    bool operator<(const Candidate& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  std::vector<Symbol> symbols;
  for (uint32_t at = 0; at < text.size();) {
    const auto match = user_defined_.Find(text.substr(at));
    const size_t num_bytes =
        match ? match->num_bytes : NextUtf8(text.substr(at)).num_bytes;
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({{at, static_cast<uint32_t>(at + num_bytes)},
                       index - 1,
                       index + 1,
                       match.has_value()});
    at = symbols.back().range.end;
  }
  if (symbols.empty()) return {};
  symbols.back().next = -1;

  std::priority_queue<Candidate> queue;
  // How unused pieces came about; they are taken apart again.
  absl::flat_hash_map<absl::string_view, uint32_t> left_bytes;
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0 || symbols[left].frozen ||
        symbols[right].frozen) {
      return;
    }
    const ByteRange joined = {symbols[left].range.begin,
                              symbols[right].range.end};
    const absl::string_view piece = joined.Of(text);
    const int32_t id = FindPiece(piece);
    if (id == Vocabulary::kNone) return;
    queue.push({scores_[id], left, right, joined.size()});
    if (Type(id) == Piece::UNUSED) {
      left_bytes[piece] = symbols[left].range.size();
    }
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    offer(i, i + 1);
  }
  const auto size = [&](int32_t i) { return symbols[i].range.size(); };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    if (size(top.left) == 0 || size(top.right) == 0 ||
        size(top.left) + size(top.right) != top.num_bytes) {
      continue;  // one of the two has changed
    }
    Symbol& left = symbols[top.left];
    Symbol& right = symbols[top.right];
    left.range.end = right.range.end;
    left.next = right.next;
    right.range.begin = right.range.end;
    if (left.next >= 0) symbols[left.next].previous = top.left;
    offer(left.previous, top.left);
    offer(top.left, left.next);
  }

  std::vector<Result> results;
  std::vector<ByteRange> stack;
  for (int32_t i = 0; i >= 0; i = symbols[i].next) {
    stack.push_back(symbols[i].range);
    while (!stack.empty()) {
      const ByteRange range = stack.back();
      stack.pop_back();
      const int32_t id = FindPiece(range.Of(text));
      const auto split = left_bytes.find(range.Of(text));
      if (id != Vocabulary::kNone && Type(id) == Piece::UNUSED &&
          split != left_bytes.end()) {
        const uint32_t middle = range.begin + split->second;
        stack.push_back({middle, range.end});
        stack.push_back({range.begin, middle});
        continue;
      }
      results.push_back({range, id == Vocabulary::kNone ? unk_id_ : id});
    }
  }
  return results;
}

// The best segmentation by the sum of scores (Viterbi), from left to right.
std::vector<SentencePieceTokenizer::Result>
SentencePieceTokenizer::EncodeUnigram(absl::string_view text) const {
  struct Node {
    int32_t id = Vocabulary::kNone;
    int32_t begin = -1;
    float score = 0;
  };
  std::vector<Node> best(text.size() + 1);  // by the end of the last piece
  const float unknown_score = min_score_ - kUnknownPenalty;
  for (size_t begin = 0; begin < text.size();) {
    const size_t character = NextUtf8(text.substr(begin)).num_bytes;
    const auto offer = [&](size_t num_bytes, int32_t id, double score) {
      Node& node = best[begin + num_bytes];
      const double total = score + best[begin].score;
      if (node.begin < 0 || total > node.score) {
        node = {id, static_cast<int32_t>(begin), static_cast<float>(total)};
      }
    };
    bool has_character = false;
    pieces_.ForEachPrefix(
        text.substr(begin), [&](int32_t id, size_t num_bytes) {
          if (Type(id) == Piece::UNUSED) return;
          // A user-defined piece beats all others that are as long.
          offer(num_bytes, id,
                Type(id) == Piece::USER_DEFINED
                    ? static_cast<float>(num_bytes) * max_score_ - 0.1
                    : scores_[id]);
          has_character |= num_bytes == character;
        });
    if (!has_character) offer(character, unk_id_, unknown_score);
    begin += character;
  }
  std::vector<Result> results;
  for (auto end = static_cast<int32_t>(text.size()); end > 0;) {
    const Node& node = best[end];
    results.push_back(
        {{static_cast<uint32_t>(node.begin), static_cast<uint32_t>(end)},
         node.id});
    end = node.begin;
  }
  std::reverse(results.begin(), results.end());
  return results;
}

void SentencePieceTokenizer::EncodePlain(absl::string_view text,
                                         std::vector<int32_t>* ids) const {
  const std::string normalized = normalizer_.Apply(text);
  bool after_unknown = false;
  for (const Result& result :
       is_bpe_ ? EncodeBpe(normalized) : EncodeUnigram(normalized)) {
    const bool unknown = result.id == unk_id_;
    if (unknown && byte_fallback_) {
      for (const char c : result.range.Of(normalized)) {
        ids->push_back(byte_ids_[static_cast<uint8_t>(c)]);
      }
    } else if (!unknown || !after_unknown) {
      ids->push_back(result.id);
    }
    after_unknown = unknown;
  }
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::Encode(
    absl::string_view text, const EncodeOptions& options) const {
  ABSL_RETURN_IF_ERROR(CheckText(text));
  std::vector<int32_t> ids;
  if (options.add_special_tokens) ids = prefix_;
  size_t done = 0;
  for (size_t at = 0; options.parse_special && at < text.size();) {
    const auto match = control_.Find(text.substr(at));
    if (!match || std::binary_search(options.literal_at.begin(),
                                     options.literal_at.end(), at)) {
      at += match ? match->num_bytes : 1;
      continue;
    }
    EncodePlain(text.substr(done, at - done), &ids);
    ids.push_back(match->value);
    at += match->num_bytes;
    done = at;
  }
  EncodePlain(text.substr(done), &ids);
  if (options.add_special_tokens) {
    ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  }
  return ids;
}

std::unique_ptr<Tokenizer::DecodeStream>
SentencePieceTokenizer::NewDecodeStream(const DecodeOptions& options) const {
  return std::make_unique<Stream>(*this, options);
}

int32_t SentencePieceTokenizer::vocab_size() const { return vocabulary_.end(); }

bool SentencePieceTokenizer::IsKnown(int32_t token_id) const {
  return vocabulary_.Text(token_id) != nullptr;
}

std::optional<int32_t> SentencePieceTokenizer::bos_token_id() const {
  return config_.bos_token_id;
}

std::optional<int32_t> SentencePieceTokenizer::eos_token_id() const {
  return config_.eos_token_id;
}

bool SentencePieceTokenizer::IsSpecial(int32_t token_id) const {
  return IsKnown(token_id) && Type(token_id) == Piece::CONTROL;
}

std::string SentencePieceTokenizer::TokenBytes(int32_t token_id) const {
  if (!IsKnown(token_id)) return "";
  const std::string& piece = *vocabulary_.Text(token_id);
  switch (Type(token_id)) {
    case Piece::BYTE:
      return std::string(1, *ParseByteToken(piece));
    case Piece::CONTROL:
      return piece;
    case Piece::UNKNOWN:
      return unk_surface_;
    default:
      return absl::StrReplaceAll(piece, {{kSpaceSymbol, " "}});
  }
}

}  // namespace troupe::tokenizer
