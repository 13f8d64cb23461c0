// Sets of addresses that change: files on disk, and names whose resolver the
// test decides.
#include "cluster/address_source.h"

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// What a listener was told.
class Told {
 public:
  AddressSource::Listener listener() {
    return [this](const std::vector<std::string>& addresses) {
      absl::MutexLock lock(&mu_);
      sets_.push_back(addresses);
    };
  }
  // Blocks until the newest set is this one.
  void Await(const std::vector<std::string>& want) {
    const auto is_told = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return !sets_.empty() && sets_.back() == want;
    };
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&is_told));
  }
  size_t count() {
    absl::MutexLock lock(&mu_);
    return sets_.size();
  }

 private:
  absl::Mutex mu_;
  std::vector<std::vector<std::string>> sets_ ABSL_GUARDED_BY(mu_);
};

// A resolver with a table; a missing name is an error.
class FakeDns {
 public:
  ResolveHost resolve() {
    return [this](const std::string& host)
               -> absl::StatusOr<std::vector<std::string>> {
      absl::MutexLock lock(&mu_);
      ++looks_;
      const auto entry = table_.find(host);
      if (entry == table_.end()) return absl::UnavailableError("no such name");
      return entry->second;
    };
  }
  void Set(const std::string& host, std::vector<std::string> addresses) {
    absl::MutexLock lock(&mu_);
    table_[host] = std::move(addresses);
  }
  void Remove(const std::string& host) {
    absl::MutexLock lock(&mu_);
    table_.erase(host);
  }
  // Blocks until an answer of now has been used: a look ends before the next.
  void AwaitTwoLooks() {
    absl::MutexLock lock(&mu_);
    const int before = looks_;
    const auto enough = [&] { return looks_ >= before + 2; };
    mu_.Await(absl::Condition(&enough));
  }

 private:
  absl::Mutex mu_;
  int looks_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, std::vector<std::string>> table_ ABSL_GUARDED_BY(mu_);
};

std::unique_ptr<AddressSource> Create(const std::vector<std::string>& specs,
                                      FakeDns* dns = nullptr) {
  AddressSourceOptions options;
  options.specs = specs;
  options.file_interval = milliseconds(2);
  options.dns_interval = milliseconds(2);
  if (dns != nullptr) options.resolve = dns->resolve();
  auto source = AddressSource::Create(std::move(options));
  EXPECT_TRUE(source.ok()) << source.status();
  return *std::move(source);
}

void Replace(const std::string& path, const std::string& text) {
  WriteFile(absl::StrCat(path, ".new"), text);
  std::filesystem::rename(absl::StrCat(path, ".new"), path);
}

TEST(AddressSourceTest, PlainAddressesAreToldAtOnceSortedAndOnce) {
  Told told;
  const auto source = Create({"b:2", "unix:/tmp/a", "a:1", "b:2"});
  EXPECT_THAT(source->addresses(), ElementsAre("a:1", "b:2", "unix:/tmp/a"));
  source->Start(told.listener());
  told.Await({"a:1", "b:2", "unix:/tmp/a"});
  EXPECT_EQ(told.count(), 1u);
  EXPECT_THAT(source->Describe(), IsEmpty());
}

TEST(AddressSourceTest, WrongSpecsAreNamed) {
  for (const char* spec :
       {"", "host", "host:", ":1", "host:0", "host:65536", "host:x",
        "unix:", "file:", "dns:", "dns:name", "dns:unix:/x", "a b:1"}) {
    AddressSourceOptions options;
    options.specs = {"good:1", spec};
    const absl::Status status = AddressSource::Create(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << spec;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat("\"", spec, "\"")));
  }
}

TEST(AddressSourceTest, AListHasCommentsAndNamesItsWrongLine) {
  const auto list = ParseAddressList("# routers\n a:1 # first\n\nb:2\r\n");
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_THAT(*list, ElementsAre("a:1", "b:2"));
  EXPECT_THAT(std::string(ParseAddressList("a:1\nb\n").status().message()),
              HasSubstr("line 2: \"b\""));
}

TEST(AddressSourceTest, AFileIsWatched) {
  const TempDir dir;
  const std::string path = dir.File("routers");
  WriteFile(path, "a:1\n");
  Told told;
  const auto source = Create({absl::StrCat("file:", path), "z:9"});
  source->Start(told.listener());
  told.Await({"a:1", "z:9"});
  Replace(path, "a:1\nb:2\n");
  told.Await({"a:1", "b:2", "z:9"});
  Replace(path, "b:2\nz:9\n");
  told.Await({"b:2", "z:9"});
  Replace(path, "");
  told.Await({"z:9"});
  ASSERT_EQ(source->Describe().size(), 1u);
  EXPECT_EQ(source->Describe()[0].changes, 4u);
}

TEST(AddressSourceTest, AFileThatCannotBeReadOrIsWrongChangesNothing) {
  const TempDir dir;
  const std::string path = dir.File("routers");
  Told told;
  const auto source = Create({absl::StrCat("file:", path)});
  source->Start(told.listener());
  told.Await({});
  EXPECT_THAT(source->Describe()[0].last_error, HasSubstr(path));
  Replace(path, "a:1\n");
  told.Await({"a:1"});
  EXPECT_EQ(source->Describe()[0].last_error, "");
  Replace(path, "a:1\nnonsense\n");
  while (source->Describe()[0].last_error.empty()) {
  }
  EXPECT_THAT(source->Describe()[0].last_error, HasSubstr("line 2"));
  EXPECT_THAT(source->addresses(), ElementsAre("a:1"));
  std::filesystem::remove(path);
  const uint64_t failures = source->Describe()[0].failures;
  while (source->Describe()[0].failures <= failures + 1) {
  }
  EXPECT_THAT(source->addresses(), ElementsAre("a:1"));
  Replace(path, "c:3\n");
  told.Await({"c:3"});
}

TEST(AddressSourceTest, ANameIsResolvedAgainAndAgain) {
  FakeDns dns;
  dns.Set("routers", {"10.0.0.2", "10.0.0.1", "10.0.0.2"});
  Told told;
  const auto source = Create({"dns:routers:7100"}, &dns);
  source->Start(told.listener());
  told.Await({"10.0.0.1:7100", "10.0.0.2:7100"});
  dns.Set("routers", {"10.0.0.2", "fd00::3"});
  told.Await({"10.0.0.2:7100", "[fd00::3]:7100"});
  // A dead resolver, or one that knows nobody: what is known stays.
  dns.Remove("routers");
  dns.AwaitTwoLooks();
  EXPECT_THAT(source->Describe()[0].last_error, HasSubstr("no such name"));
  dns.Set("routers", {});
  dns.AwaitTwoLooks();
  EXPECT_THAT(source->Describe()[0].last_error, HasSubstr("no address"));
  EXPECT_THAT(source->addresses(),
              ElementsAre("10.0.0.2:7100", "[fd00::3]:7100"));
  dns.Set("routers", {"10.0.0.4"});
  told.Await({"10.0.0.4:7100"});
}

// Neither the others nor the end wait for a resolver that blocks.
TEST(AddressSourceTest, AResolverThatHangsHoldsNobodyUp) {
  const TempDir dir;
  const std::string path = dir.File("routers");
  WriteFile(path, "a:1\n");
  struct Gate {
    absl::Mutex mu;
    bool entered = false;
    bool open = false;
  };
  const auto gate = std::make_shared<Gate>();
  AddressSourceOptions options;
  options.specs = {"dns:slow:1", absl::StrCat("file:", path)};
  options.file_interval = milliseconds(2);
  options.resolve =
      [gate](const std::string&) -> absl::StatusOr<std::vector<std::string>> {
    absl::MutexLock lock(&gate->mu);
    gate->entered = true;
    gate->mu.Await(absl::Condition(&gate->open));
    return absl::UnavailableError("late");
  };
  Told told;
  {
    const auto source = AddressSource::Create(std::move(options));
    ASSERT_TRUE(source.ok());
    (*source)->Start(told.listener());
    Replace(path, "b:2\n");
    told.Await({"b:2"});
    absl::MutexLock lock(&gate->mu);
    gate->mu.Await(absl::Condition(&gate->entered));
  }
  absl::MutexLock lock(&gate->mu);
  gate->open = true;
}

TEST(AddressSourceTest, TheSystemsResolverKnowsThisHost) {
  const auto hosts = ResolveBySystem("localhost");
  ASSERT_TRUE(hosts.ok()) << hosts.status();
  EXPECT_THAT(*hosts, testing::Contains(testing::AnyOf("127.0.0.1", "::1")));
  EXPECT_FALSE(ResolveBySystem("no-such-name.invalid").ok());
}

}  // namespace
}  // namespace troupe
