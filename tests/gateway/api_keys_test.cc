#include "gateway/api_keys.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

// sha256sum of "trp-a", "trp-b".
constexpr char kHashA[] =
    "fb99c638668d6f48d7dd3a6bc65001379330db4ec005d63655b0c5b998e91567";
constexpr char kHashB[] =
    "98086356d9b7c9fbc0b4ab85d5747f5044511e78f41e2ce43167efefdc350e16";

std::string File(const std::string& keys) {
  return absl::StrCat("{\"keys\": [", keys, "]}");
}

// A good key's fields and `more`.
std::string Key(const std::string& more) {
  return absl::StrCat("{\"name\": \"a\", \"sha256\": \"", kHashA, "\"",
                      more.empty() ? "" : ", ", more, "}");
}

TEST(ApiKeysTest, ReadsAllFields) {
  const absl::StatusOr<ApiKeys> keys = ApiKeys::Parse(
      File(absl::StrCat(
          Key(R"("role": "admin", "expires": "2027-01-31T02:00:00+02:00",
                 "disabled": true,
                 "limits": {"requests_per_minute": 60,
                            "tokens_per_minute": 100000,
                            "max_concurrent": 8, "priority": 3})"),
          R"(, {"name": "b", "sha256": ")", kHashB, "\"}")),
      "keys.json");
  ASSERT_TRUE(keys.ok()) << keys.status();
  const ApiKey& a = keys->all()[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.role, KeyRole::kAdmin);
  EXPECT_TRUE(a.disabled);
  EXPECT_EQ(
      absl::FormatTime(absl::RFC3339_full, a.expires, absl::UTCTimeZone()),
      "2027-01-31T00:00:00+00:00");
  EXPECT_EQ(a.limits.requests_per_minute, 60u);
  EXPECT_EQ(a.limits.tokens_per_minute, 100000u);
  EXPECT_EQ(a.limits.max_concurrent, 8u);
  EXPECT_EQ(a.limits.priority, 3u);
  const ApiKey& b = keys->all()[1];
  EXPECT_EQ(b.role, KeyRole::kClient);
  EXPECT_FALSE(b.disabled);
  EXPECT_EQ(b.expires, absl::InfiniteFuture());
  EXPECT_EQ(b.limits.requests_per_minute, 0u);
  EXPECT_EQ(b.limits.tokens_per_minute, 0u);
  EXPECT_EQ(b.limits.max_concurrent, 0u);
  EXPECT_EQ(b.limits.priority, kDefaultPriority);

  EXPECT_EQ(keys->Find("trp-a"), 0);
  EXPECT_EQ(keys->Find("trp-b"), 1);
  for (const std::string& other :
       {std::string(), std::string("trp-"), std::string("trp-a "),
        std::string("trp-a\0", 6), std::string("TRP-A"), std::string(kHashA),
        std::string(1 << 20, 'x')}) {
    EXPECT_EQ(keys->Find(other), -1) << other.substr(0, 20);
  }

  // What it writes it reads.
  const std::string text = FormatApiKeys(keys->all());
  const absl::StatusOr<ApiKeys> again = ApiKeys::Parse(text, "again");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(FormatApiKeys(again->all()), text);
  EXPECT_EQ(again->all()[0].expires, a.expires);
  EXPECT_EQ(again->all()[0].sha256, a.sha256);
}

TEST(ApiKeysTest, AnEmptyListLetsNobodyIn) {
  const absl::StatusOr<ApiKeys> keys = ApiKeys::Parse(File(""), "keys.json");
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(keys->Find("trp-a"), -1);
}

struct Bad {
  std::string text;
  std::string error;  // a part of it
};

TEST(ApiKeysTest, BadFilesAreRefusedByFileKeyAndField) {
  const std::string in_key = "keys.json: keys[0]: ";
  const std::vector<Bad> table = {
      {"", "keys.json: invalid JSON"},
      {"{", "keys.json: invalid JSON"},
      {"[]", "keys.json"},
      {"null", "keys.json"},
      {"{}", "keys.json: keys: is not an array"},
      {R"({"keys": {}})", "keys.json: keys: is not an array"},
      {R"({"keys": null})", "keys.json: keys: is null"},
      {R"({"keys": [], "key": 1})", "keys.json: key: there is no such field"},
      {R"({"keys": [], "keys": []})", "duplicate key"},
      {File("1"), "keys.json: keys[0]"},
      {File("[]"), "keys.json: keys[0]"},
      {File("{}"), in_key + "name: "},
      {File(absl::StrCat(R"({"sha256": ")", kHashA, "\"}")), in_key + "name: "},
      {File(R"({"name": "a"})"), in_key + "sha256: is not 64 hex digits"},
      {File(R"({"name": "a", "sha256": "ab"})"), in_key + "sha256: "},
      {File(absl::StrCat(R"({"name": "a", "sha256": ")", kHashA, "0\"}")),
       in_key + "sha256: "},
      {File(absl::StrCat(R"({"name": "a", "sha256": "g)",
                         std::string(kHashA).substr(1), "\"}")),
       in_key + "sha256: "},
      {File(R"({"name": "a", "sha256": 7})"), in_key + "sha256: "},
      {File(absl::StrCat(R"({"name": "", "sha256": ")", kHashA, "\"}")),
       in_key + "name: "},
      {File(absl::StrCat(R"({"name": "a b", "sha256": ")", kHashA, "\"}")),
       in_key + "name: \"a b\" is not"},
      {File(absl::StrCat(R"({"name": "a\nb", "sha256": ")", kHashA, "\"}")),
       in_key + "name: "},
      {File(absl::StrCat("{\"name\": \"", std::string(65, 'x'),
                         R"(", "sha256": ")", kHashA, "\"}")),
       in_key + "name: "},
      {File(absl::StrCat(R"({"name": ["a"], "sha256": ")", kHashA, "\"}")),
       in_key + "name: must be a string"},
      {File(Key(R"("role": "root")")), in_key + "role: "},
      {File(Key(R"("role": "Admin")")), in_key + "role: "},
      {File(Key(R"("role": null)")), in_key + "role: is null"},
      {File(Key(R"("key": "trp-secret")")),
       in_key + "key: there is no such field"},
      {File(Key(R"("disabled": "yes")")), in_key + "disabled: "},
      {File(Key(R"("disabled": 1)")), in_key + "disabled: "},
      {File(Key(R"("expires": "tomorrow")")), in_key + "expires: "},
      {File(Key(R"("expires": "2027-02-30T00:00:00Z")")), in_key + "expires: "},
      {File(Key(R"("expires": "2027-01-31")")), in_key + "expires: "},
      {File(Key(R"("expires": "infinite-future")")), in_key + "expires: "},
      {File(Key(R"("expires": 1800000000)")), in_key + "expires: "},
      {File(Key(R"("limits": [])")), in_key + "limits"},
      {File(Key(R"("limits": {"requests_per_minute": 0})")),
       in_key + "limits: requests_per_minute: must be an integer from 1"},
      {File(Key(R"("limits": {"requests_per_minute": -1})")),
       in_key + "limits: requests_per_minute: "},
      {File(Key(R"("limits": {"requests_per_minute": 1.5})")),
       in_key + "limits: requests_per_minute: "},
      {File(Key(R"("limits": {"requests_per_minute": "60"})")),
       in_key + "limits: requests_per_minute: "},
      {File(Key(R"("limits": {"tokens_per_minute": 1000000001})")),
       in_key + "limits: tokens_per_minute: "},
      {File(Key(R"("limits": {"tokens_per_minute": 1e9})")),
       in_key + "limits: tokens_per_minute: "},
      {File(Key(R"("limits": {"tokens_per_minute": null})")),
       in_key + "limits: tokens_per_minute: is null"},
      {File(Key(R"("limits": {"max_concurrent": 0})")),
       in_key + "limits: max_concurrent: "},
      {File(Key(R"("limits": {"priority": 4})")),
       in_key + "limits: priority: must be an integer from 0 to 3"},
      {File(Key(R"("limits": {"request_per_minute": 60})")),
       in_key + "limits: request_per_minute: there is no such field"},
      {File(absl::StrCat(Key(""), ", ", Key(""))),
       "keys.json: keys[1]: name: \"a\" is another key's, too"},
      {File(absl::StrCat(Key(""), R"(, {"name": "b", "sha256": ")", kHashA,
                         "\"}")),
       "keys.json: keys[1]: sha256: is another key's, too"},
      {std::string("{\"keys\": []}\0", 13), "zero byte"},
      {File(Key("")) + " x", "invalid JSON"},
  };
  for (const Bad& bad : table) {
    const absl::StatusOr<ApiKeys> keys = ApiKeys::Parse(bad.text, "keys.json");
    ASSERT_FALSE(keys.ok()) << bad.text;
    EXPECT_EQ(keys.status().code(), absl::StatusCode::kInvalidArgument)
        << bad.text;
    EXPECT_THAT(std::string(keys.status().message()), HasSubstr(bad.error))
        << bad.text;
    // A key that somebody wrote there in plain is not repeated.
    EXPECT_THAT(std::string(keys.status().message()),
                testing::Not(HasSubstr("trp-secret")));
  }
}

TEST(ApiKeysTest, ThereIsABoundOnTheirNumber) {
  const std::string one = Key("");
  std::string many = one;
  for (size_t i = 0; i < kMaxApiKeys; ++i) absl::StrAppend(&many, ",", one);
  const absl::StatusOr<ApiKeys> keys = ApiKeys::Parse(File(many), "keys.json");
  EXPECT_THAT(std::string(keys.status().message()), HasSubstr("at most 4096"));
}

TEST(ApiKeysTest, AFileThatIsNoneIsRefused) {
  EXPECT_FALSE(ApiKeys::Read("/no/such/file").ok());
  EXPECT_FALSE(ApiKeys::Read("/dev/zero").ok());
  EXPECT_FALSE(ApiKeys::Read("/tmp").ok());
}

}  // namespace
}  // namespace troupe
