#include "gateway/choice_text.h"

#include "gtest/gtest.h"
#include "tests/fakes/fake_router/fake_tokenizer.h"

namespace troupe {
namespace {

// Feeds the bytes of `text` as tokens; everything that came out.
ChoiceText::Delta RunBytes(const std::string& text,
                           const ChoiceTextOptions& options) {
  const FakeTokenizer tokenizer;
  ChoiceText choice(tokenizer, options, {});
  ChoiceText::Delta all;
  for (const unsigned char byte : text) {
    const ChoiceText::Delta delta = choice.Append(byte);
    all.text += delta.text;
    if (delta.stopped) {
      all.stopped = true;
      all.stop = delta.stop;
      return all;
    }
  }
  const ChoiceText::Delta rest = choice.Finish();
  all.text += rest.text;
  all.stopped = rest.stopped;
  all.stop = rest.stop;
  return all;
}

TEST(ChoiceTextTest, NeverSplitsACharacter) {
  const FakeTokenizer tokenizer;
  ChoiceText choice(tokenizer, {}, {});
  const std::string text = "z\xC3\xBC\xE2\x82\xAC\xF0\x9F\x98\x80";
  std::string all;
  for (const unsigned char byte : text) {
    const std::string delta = choice.Append(byte).text;
    EXPECT_EQ(ToValidUtf8(delta), delta);
    all += delta;
  }
  EXPECT_EQ(all, text);
}

TEST(ChoiceTextTest, AnIncompleteCharacterAtTheEndIsReplaced) {
  EXPECT_EQ(RunBytes("a\xE2\x82", {}).text, "a\xEF\xBF\xBD");
}

TEST(ChoiceTextTest, StopTextAcrossTokens) {
  const ChoiceText::Delta all = RunBytes("tell me END now", {.stop = {"END"}});
  EXPECT_EQ(all.text, "tell me ");
  EXPECT_TRUE(all.stopped);
  EXPECT_EQ(all.stop, "END");
}

TEST(ChoiceTextTest, IncludeStopKeepsIt) {
  EXPECT_EQ(
      RunBytes("tell me END now", {.stop = {"END"}, .include_stop = true}).text,
      "tell me END");
}

TEST(ChoiceTextTest, WhatWasHeldBackComesAtTheEnd) {
  const ChoiceText::Delta all = RunBytes("tell me EN", {.stop = {"END"}});
  EXPECT_EQ(all.text, "tell me EN");
  EXPECT_FALSE(all.stopped);
}

TEST(ChoiceTextTest, StopsBeforeMinTokensDoNotCount) {
  const std::string text = "a.b.c.d";
  EXPECT_EQ(RunBytes(text, {.stop = {"."}}).text, "a");
  // The second token is the first dot: it is the first that may stop.
  EXPECT_EQ(RunBytes(text, {.stop = {"."}, .min_tokens = 2}).text, "a");
  EXPECT_EQ(RunBytes(text, {.stop = {"."}, .min_tokens = 3}).text, "a.b");
  EXPECT_EQ(RunBytes(text, {.stop = {"."}, .min_tokens = 7}).text, "a.b.c.d");
}

TEST(ChoiceTextTest, ControlTokensAreSkippedUnlessKept) {
  const FakeTokenizer tokenizer;
  ChoiceText skip(tokenizer, {}, {});
  EXPECT_EQ(skip.Append(FakeTokenizer::kBos).text, "");
  ChoiceText keep(tokenizer, {.stop = {}, .keep_special_tokens = true}, {});
  EXPECT_EQ(keep.Append(FakeTokenizer::kBos).text, "<s>");
}

TEST(ChoiceTextTest, ThePromptCompletesACharacterButIsNotRepeated) {
  const FakeTokenizer tokenizer;
  const std::vector<uint32_t> prompt = {'h', 'i', 0xE2, 0x82};
  ChoiceText choice(tokenizer, {}, prompt);
  EXPECT_EQ(choice.Append(0xAC).text, "\xE2\x82\xAC");
  EXPECT_EQ(choice.Append('!').text, "!");
}

TEST(ChoiceTextTest, LongPromptsGiveOnlyTheirEndAsContext) {
  const FakeTokenizer tokenizer;
  std::vector<uint32_t> prompt(1000, 'x');
  prompt.push_back(0xC3);
  ChoiceText choice(tokenizer, {}, prompt);
  EXPECT_EQ(choice.Append(0xBC).text, "\xC3\xBC");
}

TEST(ChoiceTextTest, UnknownIdsGiveNoText) {
  const FakeTokenizer tokenizer;
  ChoiceText choice(tokenizer, {}, {});
  EXPECT_EQ(choice.Append(299).text, "");
  EXPECT_EQ(choice.Append('a').text, "a");
}

TEST(ToValidUtf8Test, ReplacesMaximalInvalidParts) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(ToValidUtf8(""), "");
  EXPECT_EQ(ToValidUtf8("a\xF4\x8F\xBF\xBF"), "a\xF4\x8F\xBF\xBF");
  EXPECT_EQ(ToValidUtf8("\x80"), r);
  EXPECT_EQ(ToValidUtf8("\xC0\xAF"), r + r);                  // overlong
  EXPECT_EQ(ToValidUtf8("\xED\xA0\x80"), r + r + r);          // surrogate
  EXPECT_EQ(ToValidUtf8("\xF4\x90\x80\x80"), r + r + r + r);  // too large
  EXPECT_EQ(ToValidUtf8("\xE2\x82"), r);                      // cut
  EXPECT_EQ(ToValidUtf8("\xE2\x82z"), r + "z");
  EXPECT_EQ(ToValidUtf8("\xF0\x9F\x98\xE2\x82\xAC"), r + "\xE2\x82\xAC");
}

TEST(TokenTextTest, PartialCharactersAreReplaced) {
  const FakeTokenizer tokenizer;
  EXPECT_EQ(TokenText(tokenizer, 'a'), "a");
  EXPECT_EQ(TokenText(tokenizer, 0xC3), "\xEF\xBF\xBD");
  EXPECT_EQ(TokenText(tokenizer, FakeTokenizer::kWord), " word");
  EXPECT_EQ(TokenText(tokenizer, 299), "");
}

}  // namespace
}  // namespace troupe
