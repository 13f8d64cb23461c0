#include "model/tokenizer/bpe_model.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/tokenizer/utf8.h"

namespace troupe::tokenizer {
namespace {

constexpr size_t kMaxMerges = size_t{1} << 23;

// The two sides of a merge, as ["a", "b"] or "a b".
absl::StatusOr<std::pair<std::string, std::string>> ParsePair(
    const JsonValue& merge) {
  const nlohmann::json& json = merge.json();
  if (json.is_array() && json.size() == 2 && json[0].is_string() &&
      json[1].is_string()) {
    return std::make_pair(json[0].get<std::string>(),
                          json[1].get<std::string>());
  }
  if (json.is_string()) {
    const auto& text = json.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos &&
        text.find(' ', space + 1) == std::string::npos) {
      return std::make_pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return merge.Error("is neither [\"left\", \"right\"] nor \"left right\"");
}

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Parse(const JsonValue& value) {
  BpeModel model;
  if (value.Find("type")) {
    ABSL_ASSIGN_OR_RETURN(const std::string type, value.GetString("type"));
    if (type != "BPE") {
      return value.Unsupported(absl::StrCat("model \"", type, "\""));
    }
  }
  for (const char* name : {"end_of_word_suffix", "continuing_subword_prefix"}) {
    const std::optional<JsonValue> member = value.Find(name);
    if (member && member->json() != "") {
      return member->Unsupported("is not empty");
    }
  }
  if (const std::optional<JsonValue> dropout = value.Find("dropout")) {
    if (!dropout->json().is_number() || dropout->json() != 0.0) {
      return dropout->Unsupported("is not 0");
    }
  }
  ABSL_ASSIGN_OR_RETURN(model.fuse_unk_, value.GetBool("fuse_unk", false));
  ABSL_ASSIGN_OR_RETURN(model.byte_fallback_,
                        value.GetBool("byte_fallback", false));
  ABSL_ASSIGN_OR_RETURN(model.ignore_merges_,
                        value.GetBool("ignore_merges", false));
  ABSL_RETURN_IF_ERROR(model.ParseVocabulary(value));
  ABSL_RETURN_IF_ERROR(model.ParseMerges(value));
  if (value.Find("unk_token")) {
    ABSL_ASSIGN_OR_RETURN(const std::string text, value.GetString("unk_token"));
    model.unk_id_ = model.vocabulary_.Find(text);
    if (model.unk_id_ == Vocabulary::kNone) {
      return value.Error(absl::StrCat("unk_token \"",
                                      absl::Utf8SafeCEscape(text),
                                      "\" is not in the vocabulary"));
    }
  }
  return model;
}

absl::Status BpeModel::ParseVocabulary(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const JsonValue vocab, value.Get("vocab"));
  if (!vocab.json().is_object()) return vocab.Error("is not an object");
  for (const auto& [text, id] : vocab.json().items()) {
    if (!id.is_number_unsigned() ||
        id.get<uint64_t>() > static_cast<uint64_t>(Vocabulary::kMaxId)) {
      return vocab.Error(absl::StrCat("token \"", absl::Utf8SafeCEscape(text),
                                      "\": the id is not an integer from 0 to ",
                                      Vocabulary::kMaxId));
    }
    const absl::Status added = vocabulary_.Add(text, id.get<int64_t>());
    if (!added.ok()) return vocab.Error(added.message());
  }
  for (int byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = vocabulary_.Find(absl::StrFormat("<0x%02X>", byte));
  }
  return absl::OkStatus();
}

absl::Status BpeModel::ParseMerges(const JsonValue& value) {
  ABSL_ASSIGN_OR_RETURN(const JsonValue merges, value.Get("merges"));
  if (!merges.json().is_array()) return merges.Error("is not an array");
  if (merges.json().size() > kMaxMerges) {
    return merges.Error(absl::StrCat("more than ", kMaxMerges, " entries"));
  }
  merges_.reserve(merges.json().size());
  int32_t index = -1;
  int32_t rank = 0;
  for (const nlohmann::json& json : merges.json()) {
    ++index;
    // The first line of the merges.txt from which such files are made.
    if (json.is_string() &&
        absl::StartsWith(json.get_ref<const std::string&>(), "#version")) {
      continue;
    }
    const JsonValue merge(&json, absl::StrCat(merges.where(), "[", index, "]"));
    ABSL_ASSIGN_OR_RETURN(const auto pair, ParsePair(merge));
    const std::string whole = pair.first + pair.second;
    for (const std::string& text : {pair.first, pair.second, whole}) {
      if (vocabulary_.Find(text) == Vocabulary::kNone) {
        return merge.Error(absl::StrCat("\"", absl::Utf8SafeCEscape(text),
                                        "\" is not in the vocabulary"));
      }
    }
    // Of two equal entries the later one counts.
    merges_[PairKey(vocabulary_.Find(pair.first),
                    vocabulary_.Find(pair.second))] = {rank++,
                                                       vocabulary_.Find(whole)};
  }
  return absl::OkStatus();
}

void BpeModel::AppendSymbols(absl::string_view piece,
                             std::vector<Symbol>* symbols) const {
  const auto add = [symbols](int32_t id) {
    const auto position = static_cast<int32_t>(symbols->size());
    symbols->push_back({id, position - 1, position + 1});
  };
  bool unk_pending = false;
  while (!piece.empty()) {
    const absl::string_view character =
        piece.substr(0, NextUtf8(piece).num_bytes);
    piece.remove_prefix(character.size());
    const int32_t id = vocabulary_.Find(character);
    if (id != Vocabulary::kNone) {
      if (unk_pending) add(unk_id_);
      unk_pending = false;
      add(id);
      continue;
    }
    const auto byte_id = [this](char c) {
      return byte_ids_[static_cast<uint8_t>(c)];
    };
    if (byte_fallback_ &&
        std::none_of(character.begin(), character.end(),
                     [&](char c) { return byte_id(c) == Vocabulary::kNone; })) {
      for (const char c : character) add(byte_id(c));
      continue;
    }
    if (unk_id_ == Vocabulary::kNone) continue;
    if (unk_pending && !fuse_unk_) add(unk_id_);
    unk_pending = true;
  }
  if (unk_pending) add(unk_id_);
  if (!symbols->empty()) symbols->back().next = -1;
}

// A queue of the possible merges, lowest rank first, over a linked list of
// symbols. An entry is stale when its two symbols have changed; then their
// merge, if any, has another id or another entry.
void BpeModel::MergeAll(Scratch* scratch) const {
  std::vector<Symbol>& symbols = scratch->symbols;
  std::vector<Candidate>& heap = scratch->candidates;
  heap.clear();
  const auto candidate = [&](int32_t left, int32_t right, auto consume) {
    if (const Merge* merge = FindMerge(symbols[left].id, symbols[right].id)) {
      consume(Candidate{merge->rank, left, merge->id});
    }
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    candidate(i, i + 1, [&](Candidate c) { heap.push_back(c); });
  }
  std::make_heap(heap.begin(), heap.end());
  const auto push = [&](Candidate c) {
    heap.push_back(c);
    std::push_heap(heap.begin(), heap.end());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate top = heap.back();
    heap.pop_back();
    Symbol& left = symbols[top.position];
    if (left.id == Vocabulary::kNone || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;
    left.id = merge->id;
    right.id = Vocabulary::kNone;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = top.position;
    if (left.previous >= 0) candidate(left.previous, top.position, push);
    if (left.next >= 0) candidate(top.position, left.next, push);
  }
}

void BpeModel::Encode(absl::string_view piece, Scratch* scratch,
                      std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    const int32_t id = vocabulary_.Find(piece);
    if (id != Vocabulary::kNone) {
      ids->push_back(id);
      return;
    }
  }
  scratch->symbols.clear();
  AppendSymbols(piece, &scratch->symbols);
  MergeAll(scratch);
  for (const Symbol& symbol : scratch->symbols) {
    if (symbol.id != Vocabulary::kNone) ids->push_back(symbol.id);
  }
}

}  // namespace troupe::tokenizer
