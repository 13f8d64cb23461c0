// A tokenizer whose tokens are bytes: what a text becomes can be seen at a
// glance, and every multi-byte character is split over tokens.
#ifndef TROUPE_TESTS_FAKES_FAKE_ROUTER_FAKE_TOKENIZER_H_
#define TROUPE_TESTS_FAKES_FAKE_ROUTER_FAKE_TOKENIZER_H_

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "model/tokenizer/tokenizer.h"

namespace troupe {

// Ids 0-255 are bytes, 256 is <s>, 257 is </s>, 258 "stop", 259 " word"; 260
// to 299 exist in the model only. Immutable.
class FakeTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kBos = 256;
  static constexpr int32_t kEos = 257;
  static constexpr int32_t kStop = 258;
  static constexpr int32_t kWord = 259;
  static constexpr int32_t kVocabSize = 300;  // of the model

  absl::StatusOr<std::vector<int32_t>> Encode(
      absl::string_view text, const EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    if (options.add_special_tokens) ids.push_back(kBos);
    for (const size_t size = text.size(); !text.empty();) {
      const bool literal =
          std::binary_search(options.literal_at.begin(),
                             options.literal_at.end(), size - text.size());
      if (options.parse_special && !literal && absl::StartsWith(text, "</s>")) {
        ids.push_back(kEos);
        text.remove_prefix(4);
        continue;
      }
      ids.push_back(static_cast<unsigned char>(text[0]));
      text.remove_prefix(1);
    }
    return ids;
  }

  std::unique_ptr<DecodeStream> NewDecodeStream(
      const DecodeOptions& options) const override {
    return std::make_unique<Stream>(*this, options);
  }

  int32_t vocab_size() const override { return 260; }
  bool IsKnown(int32_t id) const override { return id >= 0 && id < 260; }
  std::optional<int32_t> bos_token_id() const override { return kBos; }
  std::optional<int32_t> eos_token_id() const override { return kEos; }
  bool IsSpecial(int32_t id) const override { return id == kBos || id == kEos; }
  std::string TokenBytes(int32_t id) const override {
    if (id >= 0 && id < 256) return std::string(1, static_cast<char>(id));
    if (id == kBos) return "<s>";
    if (id == kEos) return "</s>";
    if (id == kStop) return "stop";
    if (id == kWord) return " word";
    return "";
  }
  std::string name() const override { return "fake"; }

 private:
  // Test texts are valid UTF-8 but for a cut at the end.
  class Stream final : public DecodeStream {
   public:
    Stream(const FakeTokenizer& tokenizer, const DecodeOptions& options)
        : tokenizer_(tokenizer), options_(options) {}

    void Append(int32_t id, std::string* text) override {
      if (options_.skip_special_tokens && tokenizer_.IsSpecial(id)) return;
      for (const char byte : tokenizer_.TokenBytes(id)) {
        held_.push_back(byte);
        if (held_.size() == Length(held_[0])) {
          text->append(held_);
          held_.clear();
        }
      }
    }
    void Finish(std::string* text) override {
      if (!held_.empty()) text->append("\xEF\xBF\xBD");
    }

   private:
    static size_t Length(char first) {
      const auto lead = static_cast<unsigned char>(first);
      return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    }
    const FakeTokenizer& tokenizer_;
    const DecodeOptions options_;
    std::string held_;
  };
};

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_FAKE_ROUTER_FAKE_TOKENIZER_H_
