#include "gateway/stop_matcher.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace troupe {
namespace {

struct Outcome {
  std::string text;
  std::string stop;  // empty: none
  bool operator==(const Outcome&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Outcome& outcome) {
  return out << "\"" << outcome.text << "\" stop \"" << outcome.stop << "\"";
}

// What the class comment says, read off the whole text.
Outcome Naive(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string best;
    for (const std::string& stop : stops) {
      if (stop.size() <= end && stop.size() > best.size() &&
          text.compare(end - stop.size(), stop.size(), stop) == 0) {
        best = stop;
      }
    }
    if (!best.empty()) return {text.substr(0, end - best.size()), best};
  }
  return {text, ""};
}

// `cuts`: bit i set means a cut after byte i.
Outcome Match(const std::string& text, const std::vector<std::string>& stops,
              uint64_t cuts) {
  StopMatcher matcher(stops);
  Outcome outcome;
  std::string piece;
  for (size_t i = 0; i < text.size(); ++i) {
    piece.push_back(text[i]);
    if (i + 1 < text.size() && (cuts >> i & 1) == 0) continue;
    const StopMatcher::Result result = matcher.Append(piece);
    piece.clear();
    outcome.text += result.text;
    if (result.stop != nullptr) {
      outcome.stop = *result.stop;
      return outcome;
    }
  }
  outcome.text += matcher.Flush();
  return outcome;
}

struct Case {
  std::string text;
  std::vector<std::string> stops;
};

class StopMatcherAllSplits : public testing::TestWithParam<Case> {};

TEST_P(StopMatcherAllSplits, AgreesWithNaiveSearch) {
  const auto& [text, stops] = GetParam();
  const Outcome expected = Naive(text, stops);
  for (uint64_t cuts = 0; cuts < uint64_t{1} << (text.size() - 1); ++cuts) {
    ASSERT_EQ(Match(text, stops, cuts), expected) << "cuts " << cuts;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Texts, StopMatcherAllSplits,
    testing::Values(Case{"Once upon", {"x"}}, Case{"Once upon", {"upon"}},
                    Case{"Once upon", {"On"}}, Case{"aaab", {"aab"}},
                    Case{"aaaaaaaaab", {"aaaab"}}, Case{"ababababc", {"ababc"}},
                    // Complete first, though it starts later.
                    Case{"xabcdx", {"abcd", "bc"}},
                    Case{"xabcdx", {"bc", "abcd"}},
                    // Complete at the same byte: the longest.
                    Case{"xabcdx", {"cd", "abcd", "d"}},
                    // A beginning that does not become a stop text.
                    Case{"one\n\ntwo\n", {"\n\n\n", "\n#"}},
                    Case{"end User:", {"User:"}},
                    Case{"gr\xC3\xBC\xC3\x9F dich", {"\xC3\x9F"}},
                    Case{"gr\xC3\xBC\xC3\x9F dich", {"\xC3\xA9"}}));

TEST(StopMatcherTest, AgreesWithNaiveSearchOnRandomTexts) {
  std::mt19937_64 random(7);
  int stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text(1 + random() % 24, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 3);
    std::vector<std::string> stops(1 + random() % 4);
    for (std::string& stop : stops) {
      stop.assign(1 + random() % 6, 'a');
      for (char& c : stop) c = static_cast<char>('a' + random() % 3);
    }
    const Outcome expected = Naive(text, stops);
    stopped += !expected.stop.empty();
    ASSERT_EQ(Match(text, stops, random()), expected) << text;
  }
  EXPECT_GT(stopped, 5000);
  EXPECT_LT(stopped, 19000);
}

TEST(StopMatcherTest, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.Append("please s").text, "please ");
  EXPECT_EQ(matcher.Append("t").text, "");
  EXPECT_EQ(matcher.Append("art").text, "start");
}

TEST(StopMatcherTest, LetsWholeCharactersThrough) {
  // U+00FC and U+00FF share their first byte with the stop text U+00E9.
  StopMatcher matcher({"\xC3\xA9"});
  EXPECT_EQ(matcher.Append("\xC3\xBC").text, "\xC3\xBC");
  EXPECT_EQ(matcher.Append("a\xC3\xBF").text, "a\xC3\xBF");
}

TEST(StopMatcherTest, MatchesDoNotReachOverAFlush) {
  StopMatcher matcher({"ab"});
  EXPECT_EQ(matcher.Append("a").text, "");
  EXPECT_EQ(matcher.Flush(), "a");
  EXPECT_EQ(matcher.Append("b").text, "b");
}

TEST(StopMatcherTest, NoStopsHoldNothing) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Append("abc").text, "abc");
}

}  // namespace
}  // namespace troupe
