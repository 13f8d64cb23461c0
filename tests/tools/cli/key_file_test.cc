#include "tools/cli/key_file.h"

#include <sys/stat.h>

#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/temp_dir.h"
#include "tools/cli/api_key_flag.h"

namespace troupe {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

ApiKey Named(const std::string& name) {
  ApiKey key;
  key.name = name;
  return key;
}

class KeyFileTest : public testing::Test {
 protected:
  const TempDir dir_;
  const std::string path_ = dir_.File("keys.json");
};

TEST_F(KeyFileTest, AKeyIsMadeListedAndRevoked) {
  ApiKey alice = Named("alice");
  alice.role = KeyRole::kAdmin;
  alice.limits = {.requests_per_minute = 60,
                  .tokens_per_minute = 1000,
                  .max_concurrent = 2,
                  .priority = 3};
  const absl::StatusOr<std::string> secret = AddKeyToFile(path_, alice);
  ASSERT_TRUE(secret.ok()) << secret.status();
  EXPECT_TRUE(absl::StartsWith(*secret, "trp-"));
  std::string bytes;
  ASSERT_TRUE(absl::WebSafeBase64Unescape(secret->substr(4), &bytes));
  EXPECT_EQ(bytes.size(), 32u);
  struct stat file;
  ASSERT_EQ(stat(path_.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0600u);
  EXPECT_THAT(ReadFile(path_), Not(HasSubstr(secret->substr(4))));

  const absl::StatusOr<std::string> other = AddKeyToFile(path_, Named("bob"));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_NE(*other, *secret);
  absl::StatusOr<ApiKeys> keys = ApiKeys::Read(path_);
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->Find(*secret), 0);
  EXPECT_EQ(keys->Find(*other), 1);
  EXPECT_EQ(keys->all()[0].limits.tokens_per_minute, 1000u);
  EXPECT_EQ(keys->all()[0].role, KeyRole::kAdmin);

  const std::string table = DescribeKeys(*keys, absl::Now());
  EXPECT_THAT(table, ContainsRegex("alice +admin +3 +60 +1000 +2 +never +good"));
  EXPECT_THAT(table, HasSubstr("never"));
  EXPECT_THAT(table, Not(HasSubstr(secret->substr(4))));
  EXPECT_THAT(
      table,
      Not(HasSubstr(absl::BytesToHexString(absl::string_view(
          reinterpret_cast<const char*>(keys->all()[0].sha256.data()), 4)))));

  ASSERT_TRUE(RevokeKeyInFile(path_, "alice", /*remove=*/false).ok());
  keys = ApiKeys::Read(path_);
  EXPECT_TRUE(keys->all()[0].disabled);
  EXPECT_FALSE(keys->all()[1].disabled);
  EXPECT_THAT(DescribeKeys(*keys, absl::Now()), HasSubstr("revoked"));
  ASSERT_TRUE(RevokeKeyInFile(path_, "alice", /*remove=*/true).ok());
  keys = ApiKeys::Read(path_);
  ASSERT_EQ(keys->all().size(), 1u);
  EXPECT_EQ(keys->Find(*secret), -1);
}

TEST_F(KeyFileTest, WhatFailsLeavesTheFileAsItWas) {
  ASSERT_TRUE(AddKeyToFile(path_, Named("alice")).ok());
  const std::string before = ReadFile(path_);
  EXPECT_THAT(
      std::string(AddKeyToFile(path_, Named("alice")).status().message()),
      HasSubstr("there is a key \"alice\""));
  EXPECT_FALSE(AddKeyToFile(path_, Named("no such name!")).ok());
  EXPECT_THAT(std::string(RevokeKeyInFile(path_, "bob", false).message()),
              HasSubstr("there is no key \"bob\""));
  EXPECT_EQ(ReadFile(path_), before);
  // A file that is broken is not replaced.
  WriteFile(path_, "{\"keys\": 1}");
  EXPECT_FALSE(AddKeyToFile(path_, Named("bob")).ok());
  EXPECT_EQ(ReadFile(path_), "{\"keys\": 1}");
  EXPECT_FALSE(RevokeKeyInFile(dir_.File("none"), "bob", false).ok());
  EXPECT_FALSE(AddKeyToFile("/no/such/folder/keys", Named("bob")).ok());
  // No draft is left.
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
    files += entry.is_regular_file();
  }
  EXPECT_EQ(files, 1u);
}

TEST_F(KeyFileTest, AForeignDraftIsNamed) {
  WriteFile(path_ + ".new", "");
  EXPECT_THAT(
      std::string(AddKeyToFile(path_, Named("alice")).status().message()),
      HasSubstr(path_ + ".new exists"));
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(KeyFileTest, BehindALinkTheFileItselfIsChanged) {
  std::filesystem::create_symlink(path_, dir_.File("link"));
  ASSERT_TRUE(AddKeyToFile(path_, Named("alice")).ok());
  ASSERT_TRUE(AddKeyToFile(dir_.File("link"), Named("bob")).ok());
  EXPECT_TRUE(std::filesystem::is_symlink(dir_.File("link")));
  EXPECT_EQ(ApiKeys::Read(path_)->all().size(), 2u);
}

TEST_F(KeyFileTest, ChangesAtTheSameTimeAreNotLost) {
  std::vector<std::thread> threads;
  std::vector<std::string> secrets(8);
  for (size_t i = 0; i < secrets.size(); ++i) {
    threads.emplace_back([&, i] {
      const auto secret = AddKeyToFile(path_, Named(absl::StrCat("key-", i)));
      if (secret.ok()) secrets[i] = *secret;
    });
  }
  for (std::thread& thread : threads) thread.join();
  const absl::StatusOr<ApiKeys> keys = ApiKeys::Read(path_);
  ASSERT_TRUE(keys.ok()) << keys.status();
  size_t made = 0;
  for (const std::string& secret : secrets) {
    if (secret.empty()) continue;  // its turn did not come in time
    ++made;
    EXPECT_GE(keys->Find(secret), 0);
  }
  EXPECT_EQ(keys->all().size(), made);
  EXPECT_GE(made, 1u);
}

TEST(ExpiryTest, TimesAndDays) {
  const absl::Time now = absl::FromUnixSeconds(1800000000);
  EXPECT_EQ(*ParseExpiryOrDays("30d", now), now + absl::Hours(720));
  EXPECT_EQ(
      absl::ToUnixSeconds(*ParseExpiryOrDays("2027-01-31T00:00:00Z", now)),
      1801353600);
  for (const char* bad : {"", "d", "0d", "-1d", "99999d", "30", "1h",
                          "tomorrow", "2020-01-01T00:00:00Z", "2027-01-31"}) {
    EXPECT_FALSE(ParseExpiryOrDays(bad, now).ok()) << bad;
  }
}

TEST(ApiKeyFlagTest, AFileGoesBeforeTheEnvironment) {
  const TempDir dir;
  WriteFile(dir.File("key"), "trp-file\n");
  setenv("TROUPE_API_KEY", "trp-env\n", 1);
  const auto parse = [](const std::string& arguments) {
    std::string key;
    CLI::App app;
    AddApiKeyFlag(app, key);
    app.parse(arguments);
    return key;
  };
  EXPECT_EQ(parse(""), "trp-env");
  EXPECT_EQ(parse("--api-key-file " + dir.File("key")), "trp-file");
  for (const char* bad : {"", "\n", "two words", "two\nlines", "caf\xc3\xa9"}) {
    WriteFile(dir.File("bad"), bad);
    try {
      parse("--api-key-file " + dir.File("bad"));
      ADD_FAILURE() << bad;
    } catch (const CLI::ParseError& error) {
      EXPECT_THAT(error.what(), HasSubstr(dir.File("bad")));
      EXPECT_THAT(error.what(), Not(HasSubstr("two")));
    }
  }
  EXPECT_THROW(parse("--api-key-file /no/such/file"), CLI::ParseError);
  unsetenv("TROUPE_API_KEY");
  EXPECT_EQ(parse(""), "");
}

}  // namespace
}  // namespace troupe
