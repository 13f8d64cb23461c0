// Byte-pair encoding of one piece of text.
#ifndef TROUPE_MODEL_TOKENIZER_BPE_MODEL_H_
#define TROUPE_MODEL_TOKENIZER_BPE_MODEL_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer/json_value.h"
#include "model/tokenizer/vocabulary.h"

namespace troupe::tokenizer {

// The "model" of a tokenizer.json. Immutable and thread-safe.
class BpeModel {
 private:
  struct Symbol {
    int32_t id;  // Vocabulary::kNone: merged into the one before
    int32_t previous;
    int32_t next;  // -1: none
  };
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t id;
    // For a queue whose top is the lowest rank, leftmost first.
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  struct Merge {
    int32_t rank;
    int32_t id;
  };

 public:
  // Memory that a caller keeps from one Encode to the next.
  class Scratch {
    friend class BpeModel;
    std::vector<Symbol> symbols;
    std::vector<Candidate> candidates;  // a heap
  };

  static absl::StatusOr<BpeModel> Parse(const JsonValue& value);

  // Appends the ids of `piece` (UTF-8). O(n log n). Characters that no token
  // stands for become the unknown token, or nothing when there is none.
  void Encode(absl::string_view piece, Scratch* scratch,
              std::vector<int32_t>* ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  bool byte_fallback() const { return byte_fallback_; }

 private:
  absl::Status ParseVocabulary(const JsonValue& value);
  absl::Status ParseMerges(const JsonValue& value);

  // Null when the two do not merge.
  const Merge* FindMerge(int32_t left, int32_t right) const {
    const auto it = merges_.find(PairKey(left, right));
    return it == merges_.end() ? nullptr : &it->second;
  }
  static uint64_t PairKey(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }

  void AppendSymbols(absl::string_view piece,
                     std::vector<Symbol>* symbols) const;
  void MergeAll(Scratch* scratch) const;

  Vocabulary vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;
  int32_t unk_id_ = Vocabulary::kNone;
  bool fuse_unk_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  std::array<int32_t, 256> byte_ids_;  // "<0x00>" and so on, or kNone
};

}  // namespace troupe::tokenizer

#endif  // TROUPE_MODEL_TOKENIZER_BPE_MODEL_H_
