// Files that are broken: an error that names the place, never a crash.
#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/model/tokenizer/tokenizer_fixture.h"

namespace troupe {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

// What a merge patch (RFC 7396) on top of a fixture must be answered with.
struct Broken {
  const char* name;
  const char* patch;
  absl::StatusCode code;
  const char* where;  // a part of the message
  const char* what;   // another
};

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnknown = absl::StatusCode::kUnimplemented;

const Broken kBroken[] = {
    {"no model", R"({"model": null})", kInvalid, "$", "model"},
    {"model is a list", R"({"model": [1]})", kInvalid, "$.model",
     "not an object"},
    {"model type", R"({"model": {"type": "WordPiece"}})", kUnknown, "$.model",
     "WordPiece"},
    {"suffix", R"({"model": {"end_of_word_suffix": "</w>"}})", kUnknown,
     "$.model.end_of_word_suffix", ""},
    {"prefix", R"({"model": {"continuing_subword_prefix": "##"}})", kUnknown,
     "$.model.continuing_subword_prefix", ""},
    {"dropout", R"({"model": {"dropout": 0.1}})", kUnknown, "$.model.dropout",
     ""},
    {"no vocab", R"({"model": {"vocab": null}})", kInvalid, "$.model", "vocab"},
    {"vocab is a list", R"({"model": {"vocab": ["a"]}})", kInvalid,
     "$.model.vocab", "not an object"},
    {"negative id", R"({"model": {"vocab": {"zz1": -1}}})", kInvalid,
     "$.model.vocab", "zz1"},
    {"huge id", R"({"model": {"vocab": {"zz1": 99999999999}}})", kInvalid,
     "$.model.vocab", "zz1"},
    {"id is a string", R"({"model": {"vocab": {"zz1": "1"}}})", kInvalid,
     "$.model.vocab", "zz1"},
    {"id is a fraction", R"({"model": {"vocab": {"zz1": 1.5}}})", kInvalid,
     "$.model.vocab", "zz1"},
    {"id twice", R"({"model": {"vocab": {"zz1": 3}}})", kInvalid,
     "$.model.vocab", "zz1"},
    {"merges is an object", R"({"model": {"merges": {"a": 1}}})", kInvalid,
     "$.model.merges", "not an array"},
    {"merge of an unknown token",
     R"({"model": {"merges": ["a b", "a notthere"]}})", kInvalid,
     "$.model.merges[", "notthere"},
    {"merge to an unknown token", R"({"model": {"merges": ["q x"]}})", kInvalid,
     "$.model.merges[0]", "qx"},
    {"merge of three", R"({"model": {"merges": [["a", "b", "c"]]}})", kInvalid,
     "$.model.merges[0]", ""},
    {"merge without space", R"({"model": {"merges": ["ab"]}})", kInvalid,
     "$.model.merges[0]", ""},
    {"merge of numbers", R"({"model": {"merges": [[1, 2]]}})", kInvalid,
     "$.model.merges[0]", ""},
    {"unknown token", R"({"model": {"unk_token": "<nope>"}})", kInvalid,
     "$.model", "<nope>"},
    {"byte_fallback is a string", R"({"model": {"byte_fallback": "yes"}})",
     kInvalid, "$.model.byte_fallback", ""},
    {"normalizer", R"({"normalizer": {"type": "BertNormalizer"}})", kUnknown,
     "$.normalizer", "BertNormalizer"},
    {"inner normalizer",
     R"({"normalizer": {"type": "Sequence", "normalizers":
        [{"type": "NFC"}, {"type": "Nmt"}]}})",
     kUnknown, "$.normalizer.normalizers[1]", "Nmt"},
    {"normalizer without type", R"({"normalizer": {"a": 1}})", kInvalid,
     "$.normalizer", "type"},
    {"pre-tokenizer", R"({"pre_tokenizer": {"type": "Whitespace"}})", kUnknown,
     "$.pre_tokenizer", "Whitespace"},
    {"split pattern",
     R"({"pre_tokenizer": {"type": "Split", "behavior": "Isolated",
         "pattern": {"Regex": "(a"}}})",
     kInvalid, "$.pre_tokenizer.pattern.Regex", "(a"},
    {"split without pattern",
     R"({"pre_tokenizer": {"type": "Split", "behavior": "Isolated"}})",
     kInvalid, "$.pre_tokenizer", "pattern"},
    {"split behavior",
     R"({"pre_tokenizer": {"type": "Split", "behavior": "Odd",
         "pattern": {"Regex": "a"}}})",
     kUnknown, "$.pre_tokenizer", "Odd"},
    {"metaspace replacement",
     R"({"pre_tokenizer": {"type": "Metaspace", "replacement": "ab"}})",
     kInvalid, "$.pre_tokenizer", "one character"},
    {"post-processor", R"({"post_processor": {"type": "RobertaProcessing"}})",
     kUnknown, "$.post_processor", "RobertaProcessing"},
    {"template id",
     R"({"post_processor": {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "S"}}, {"Sequence": {"id": "A"}}],
         "special_tokens": {"S": {"ids": [123456]}}}})",
     kInvalid, "$.post_processor.special_tokens.S.ids[0]", ""},
    {"template without its token",
     R"({"post_processor": {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "S"}}, {"Sequence": {"id": "A"}}],
         "special_tokens": {}}})",
     kInvalid, "$.post_processor.special_tokens", "\"S\""},
    {"template with two texts",
     R"({"post_processor": {"type": "TemplateProcessing",
         "single": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "A"}}],
         "special_tokens": {}}})",
     kUnknown, "$.post_processor.single[1]", ""},
    {"decoder", R"({"decoder": {"type": "WordPiece"}})", kUnknown, "$.decoder",
     "WordPiece"},
    {"decoder after Fuse",
     R"({"decoder": {"type": "Sequence", "decoders":
        [{"type": "Fuse"}, {"type": "ByteFallback"}]}})",
     kUnknown, "$.decoder.decoders[1]", "ByteFallback"},
    {"strip too much",
     R"({"decoder": {"type": "Strip", "content": " ", "start": -1,
         "stop": 0}})",
     kInvalid, "$.decoder.start", ""},
    {"added tokens is an object", R"({"added_tokens": {"a": 1}})", kInvalid,
     "$.added_tokens", "not an array"},
    {"added token without id", R"({"added_tokens": [{"content": "x"}]})",
     kInvalid, "$.added_tokens[0]", "id"},
    {"added token without content", R"({"added_tokens": [{"id": 5}]})",
     kInvalid, "$.added_tokens[0]", "content"},
    {"added token with the id of another",
     R"({"added_tokens": [{"id": 5, "content": "<|x|>"}]})", kInvalid,
     "$.added_tokens[0]", "<|x|>"},
    {"added token with another id than in the vocabulary",
     R"({"added_tokens": [{"id": 90000, "content": "a"}]})", kInvalid,
     "$.added_tokens[0]", "90000"},
    {"added token twice",
     R"({"added_tokens": [{"id": 90000, "content": "<|x|>"},
                          {"id": 90001, "content": "<|x|>"}]})",
     kInvalid, "$.added_tokens[1]", "<|x|>"},
    {"added id twice",
     R"({"added_tokens": [{"id": 90000, "content": "<|x|>"},
                          {"id": 90000, "content": "<|y|>"}]})",
     kInvalid, "$.added_tokens[1]", "<|y|>"},
};

TEST(TokenizerMalformedTest, ErrorsNameTheFileAndTheField) {
  const json base = ReadTestJson(GoldenDir("gpt2") + "/tokenizer.json");
  for (const Broken& broken : kBroken) {
    SCOPED_TRACE(broken.name);
    json spec = base;
    spec.merge_patch(json::parse(broken.patch));
    ModelDir dir;
    dir.Write("tokenizer.json", spec.dump());
    const auto tokenizer = Tokenizer::Load(dir.path());
    EXPECT_EQ(tokenizer.status().code(), broken.code) << tokenizer.status();
    EXPECT_THAT(std::string(tokenizer.status().message()),
                AllOf(HasSubstr(dir.path() + "/tokenizer.json"),
                      HasSubstr(broken.where), HasSubstr(broken.what)));
  }
}

TEST(TokenizerMalformedTest, PatternsThatTheLibrariesReadDifferently) {
  const json base = ReadTestJson(GoldenDir("gpt2") + "/tokenizer.json");
  for (const char* pattern :
       {"\\bx",       "\\hx",    "\\Ax",    "\\Gx",   "\\1",
        "(?<name>x)", "(?x) a",  "(*FAIL)", "[a[b]]", "[a&&b]",
        "[\\W]",      "x{1,3}+", "\\X",     "\\R",    "\\K",
        "\\p",        "\\u12",   "\\xFF",   "a\\",    "[",
        "[]",         "\\C",     "(?R)",    "(?C1)",  "\\Qa"}) {
    SCOPED_TRACE(pattern);
    json spec = base;
    spec["pre_tokenizer"] = {{"type", "Split"},
                             {"behavior", "Isolated"},
                             {"pattern", {{"Regex", pattern}}}};
    ModelDir dir;
    dir.Write("tokenizer.json", spec.dump());
    const auto tokenizer = Tokenizer::Load(dir.path());
    EXPECT_EQ(tokenizer.status().code(), kUnknown) << tokenizer.status();
    EXPECT_THAT(std::string(tokenizer.status().message()),
                HasSubstr("$.pre_tokenizer.pattern.Regex"));
  }
}

TEST(TokenizerMalformedTest, FilesThatAreNotWhatTheySeem) {
  const auto message = [](const char* name, const std::string& contents) {
    ModelDir dir;
    dir.Write(name, contents);
    const auto tokenizer = Tokenizer::Load(dir.path());
    EXPECT_EQ(tokenizer.status().code(), kInvalid) << tokenizer.status();
    return std::string(tokenizer.status().message());
  };
  EXPECT_THAT(message("tokenizer.json", ""), HasSubstr("tokenizer.json"));
  EXPECT_THAT(message("tokenizer.json", "{\"model\": "),
              HasSubstr("tokenizer.json"));
  EXPECT_THAT(message("tokenizer.json", "[]"), HasSubstr("not an object"));
  EXPECT_THAT(message("tokenizer.json", "{\"a\": \"\xFF\"}"),
              HasSubstr("tokenizer.json"));
  EXPECT_THAT(message("tokenizer.json", std::string(1 << 20, '[')),
              HasSubstr("deeper"));
  EXPECT_THAT(message("tokenizer.model", "not a protobuf"),
              HasSubstr("tokenizer.model"));
  EXPECT_THAT(message("tokenizer.model", ""), HasSubstr("unknown piece"));

  const std::string model =
      ReadTestFile(GoldenDir("sentencepiece_unigram") + "/tokenizer.model");
  EXPECT_THAT(message("tokenizer.model", model.substr(0, model.size() / 2)),
              HasSubstr("tokenizer.model"));

  ModelDir empty;
  EXPECT_EQ(Tokenizer::Load(empty.path()).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(Tokenizer::Load(empty.path() + "/none").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(TokenizerMalformedTest, BrokenTokenizerConfig) {
  const std::string spec = ReadTestFile(GoldenDir("gpt2") + "/tokenizer.json");
  for (const auto& [config, what] :
       std::vector<std::pair<std::string, std::string>>{
           {"{", "tokenizer_config.json"},
           {R"({"bos_token": "<nope>"})", "$.bos_token: \"<nope>\""},
           {R"({"eos_token": 3})", "$.eos_token"},
           {R"({"eos_token": {"text": "x"}})", "$.eos_token"},
           {R"({"add_bos_token": "yes"})", "$.add_bos_token"}}) {
    ModelDir dir;
    dir.Write("tokenizer.json", spec).Write("tokenizer_config.json", config);
    const auto tokenizer = Tokenizer::Load(dir.path());
    EXPECT_EQ(tokenizer.status().code(), kInvalid) << tokenizer.status();
    EXPECT_THAT(std::string(tokenizer.status().message()),
                AllOf(HasSubstr("tokenizer_config.json"), HasSubstr(what)));
  }
}

// Random changes to a good file: whatever loads must also work.
void Mutate(const std::string& fixture, const std::string& file, int seed) {
  const std::string good = ReadTestFile(GoldenDir(fixture) + "/" + file);
  const std::string texts[] = {"Once upon a time <s> it's 123\n\n",
                               "caf\xC3\xA9 \xE4\xBD\xA0 \xF0\x9F\x98\x80 lone",
                               std::string(300, 'a')};
  std::mt19937 random(seed);
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::seconds(3);
  ModelDir dir;
  int num_loaded = 0;
  int num_refused = 0;
  for (int i = 0; i < 2000 && std::chrono::steady_clock::now() < deadline;
       ++i) {
    std::string bad = good;
    const int num_changes = 1 + static_cast<int>(random() % 4);
    for (int j = 0; j < num_changes; ++j) {
      // The vocabulary is most of a file; its edges have the settings.
      const size_t window = random() % 2 == 0 ? bad.size() : 2000;
      size_t at = random() % std::min(bad.size(), window);
      if (random() % 2 == 0) at = bad.size() - 1 - at;
      switch (random() % 4) {
        case 0:
          bad[at] = static_cast<char>(bad[at] ^ (1 << random() % 8));
          break;
        case 1:
          bad[at] = static_cast<char>(random());
          break;
        case 2:
          bad.erase(at, 1 + random() % 8);
          break;
        default:
          bad.insert(at, 1, "\"{}[],:019-\\tfn"[random() % 14]);
          break;
      }
    }
    dir.Write(file, bad);
    const auto tokenizer = Tokenizer::Load(dir.path());
    if (!tokenizer.ok()) {
      ++num_refused;
      EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(file));
      continue;
    }
    ++num_loaded;
    for (const std::string& text : texts) {
      const auto ids = (*tokenizer)->Encode(text, {true, true});
      if (!ids.ok()) continue;
      EXPECT_TRUE((*tokenizer)->Decode(*ids, {false}).ok());
      for (const int32_t id : *ids) (*tokenizer)->TokenBytes(id);
    }
  }
  // Both sides must have been reached for the test to mean something.
  EXPECT_GT(num_loaded, 5);
  EXPECT_GT(num_refused, 5);
}

TEST(TokenizerMalformedTest, MutationsOfByteLevel) {
  Mutate("qwen2", "tokenizer.json", 1);
}
TEST(TokenizerMalformedTest, MutationsOfByteFallback) {
  Mutate("llama2", "tokenizer.json", 2);
}
TEST(TokenizerMalformedTest, MutationsOfUnigram) {
  Mutate("sentencepiece_unigram", "tokenizer.model", 3);
}
TEST(TokenizerMalformedTest, MutationsOfSentencePieceBpe) {
  Mutate("sentencepiece_bpe", "tokenizer.model", 4);
}

}  // namespace
}  // namespace troupe
