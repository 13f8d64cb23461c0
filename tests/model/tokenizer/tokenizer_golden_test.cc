// Ids and texts against those of the `tokenizers` and `sentencepiece`
// packages; tools/goldens/tokenizers makes the fixtures.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"
#include "tests/model/tokenizer/tokenizer_fixture.h"

namespace troupe {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

std::string DecodeOrDie(const Tokenizer& tokenizer, const Ids& ids, bool skip) {
  auto text = tokenizer.Decode(ids, {skip});
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? *text : "";
}

// The deltas of a stream, each of which must be whole characters.
std::string StreamText(const Tokenizer& tokenizer, const Ids& ids, bool skip) {
  StreamDecoder decoder(tokenizer, {skip});
  std::string text;
  const auto append = [&](const std::string& delta) {
    EXPECT_EQ(tokenizer::FindInvalidUtf8(delta), delta.size());
    text += delta;
  };
  for (const int32_t id : ids) append(decoder.Append(id));
  append(decoder.Finish());
  return text;
}

void CheckDecode(const Tokenizer& tokenizer, const Ids& ids, bool skip,
                 const json& expected) {
  EXPECT_EQ(DecodeOrDie(tokenizer, ids, skip), expected.get<std::string>());
  // Every start of the ids is what a stream could have been so far.
  for (size_t count = 0; count <= ids.size();
       count += 1 + (ids.size() > 64 ? ids.size() / 16 : 0)) {
    const Ids start(ids.begin(), ids.begin() + count);
    EXPECT_EQ(StreamText(tokenizer, start, skip),
              DecodeOrDie(tokenizer, start, skip));
  }
}

void CheckCases(const Tokenizer& tokenizer, const json& golden) {
  for (const json& c : golden["cases"]) {
    const auto text = c["text"].get<std::string>();
    SCOPED_TRACE(c["text"].dump(-1, ' ', true));
    const json& ids = c["ids"];
    const json parsed = c.value("ids_parsed", ids);
    EXPECT_EQ(json(EncodeOrDie(tokenizer, text, {true, false})), ids);
    EXPECT_EQ(json(EncodeOrDie(tokenizer, text, {false, false})),
              c.value("ids_plain", ids));
    if (tokenizer.name() == "sentencepiece") {
      CheckDecode(tokenizer, c["ids_plain"].get<Ids>(), true, c["decoded"]);
      continue;
    }
    const json parsed_plain = EncodeOrDie(tokenizer, text, {false, true});
    EXPECT_EQ(parsed_plain, parsed);
    if (!c.contains("decoded")) continue;
    CheckDecode(tokenizer, parsed.get<Ids>(), true, c["decoded"]);
    CheckDecode(tokenizer, parsed.get<Ids>(), false,
                c.value("decoded_with_special", c["decoded"]));
  }
  for (const json& c : golden["decode_cases"]) {
    SCOPED_TRACE(c["ids"].dump());
    CheckDecode(tokenizer, c["ids"].get<Ids>(), true, c["text"]);
    if (c.contains("text_with_special")) {
      CheckDecode(tokenizer, c["ids"].get<Ids>(), false,
                  c["text_with_special"]);
    }
  }
}

class TokenizerGoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerGoldenTest, IdsAndTextsAreThoseOfThePackages) {
  const auto tokenizer = LoadOrDie(GoldenDir(GetParam()));
  const json golden = ReadTestJson(GoldenDir(GetParam()) + "/cases.json");
  ASSERT_GT(golden["cases"].size(), 90u);
  ASSERT_GT(golden["decode_cases"].size(), 20u);
  CheckCases(*tokenizer, golden);
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerGoldenTest,
                         testing::Values("gpt2", "llama3", "qwen2", "llama2",
                                         "sentencepiece_bpe",
                                         "sentencepiece_unigram",
                                         "sentencepiece_plain"),
                         [](const auto& test) { return test.param; });

class TokenizerVariantTest : public testing::TestWithParam<std::string> {};

TEST_P(TokenizerVariantTest, EverySettingOfTokenizerJson) {
  const std::string base = GoldenDir(GetParam());
  const json variants = ReadTestJson(base + "/variants.json");
  ASSERT_GT(variants.size(), 4u);
  for (const json& variant : variants) {
    SCOPED_TRACE(variant["name"].get<std::string>());
    json spec = ReadTestJson(base + "/tokenizer.json");
    spec.merge_patch(variant["patch"]);
    ModelDir dir;
    dir.Write("tokenizer.json", spec.dump());
    ASSERT_GT(variant["cases"].size(), 15u);
    CheckCases(*LoadOrDie(dir.path()), variant);
  }
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerVariantTest,
                         testing::Values("gpt2", "qwen2", "llama2"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace troupe
