// troupe keys: the API keys of gateways.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "tools/cli/command.h"
#include "tools/cli/key_file.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

struct Flags {
  std::string file;
  std::string role = "client";
  std::string expires;
  ApiKey key;
  bool remove = false;
};

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "troupe: %s\n", std::string(status.message()).c_str());
  return kExitFailed;
}

int Add(Flags& flags) {
  if (!flags.expires.empty()) {
    const absl::StatusOr<absl::Time> expires =
        ParseExpiryOrDays(flags.expires, absl::Now());
    if (!expires.ok()) {
      std::fprintf(stderr, "troupe: --expires: %s\n",
                   std::string(expires.status().message()).c_str());
      return kExitUsage;
    }
    flags.key.expires = *expires;
  }
  if (flags.role == "admin") flags.key.role = KeyRole::kAdmin;
  const absl::StatusOr<std::string> secret =
      AddKeyToFile(flags.file, flags.key);
  if (!secret.ok()) return Fail(secret.status());
  std::printf("%s\n", secret->c_str());
  if (IsTerminal(STDOUT_FILENO)) {
    std::fprintf(stderr,
                 "troupe: this is the key \"%s\"; it is shown this once. %s "
                 "has its hash.\n",
                 flags.key.name.c_str(), flags.file.c_str());
  }
  return kExitOk;
}

int Revoke(const Flags& flags) {
  const absl::Status status =
      RevokeKeyInFile(flags.file, flags.key.name, flags.remove);
  if (!status.ok()) return Fail(status);
  std::fprintf(stderr, "troupe: the key \"%s\" is %s\n", flags.key.name.c_str(),
               flags.remove ? "removed" : "revoked");
  return kExitOk;
}

int List(const Flags& flags) {
  const absl::StatusOr<ApiKeys> keys = ApiKeys::Read(flags.file);
  if (!keys.ok()) return Fail(keys.status());
  std::fputs(DescribeKeys(*keys, absl::Now()).c_str(), stdout);
  return kExitOk;
}

void AddFileFlag(CLI::App& app, Flags& flags) {
  app.add_option("--file", flags.file, "The gateways' file of API keys")
      ->envname("TROUPE_API_KEYS")
      ->required();
}

CLI::App* AddAdd(CLI::App& parent, Flags& flags) {
  CLI::App* app = parent.add_subcommand(
      "add", "Make a key and print it; the file gets its hash");
  app->add_option("NAME", flags.key.name,
                  "Of the key, in logs and metrics: letters, digits, . _ -")
      ->required();
  AddFileFlag(*app, flags);
  app->add_option("--role", flags.role, "admin may see statistics, too")
      ->check(CLI::IsMember({"client", "admin"}))
      ->capture_default_str();
  KeyLimits& limits = flags.key.limits;
  app->add_option("--requests-per-minute", limits.requests_per_minute,
                  "Default: no limit")
      ->check(CLI::Range(uint64_t{1}, kMaxPerMinute));
  app->add_option("--tokens-per-minute", limits.tokens_per_minute,
                  "Of prompts and completions; default: no limit")
      ->check(CLI::Range(uint64_t{1}, kMaxPerMinute));
  app->add_option("--max-concurrent", limits.max_concurrent,
                  "Requests at a time; default: no limit")
      ->check(CLI::Range(1u, kMaxKeyConcurrent));
  app->add_option("--priority", limits.priority,
                  "0 to 3: under overload each has twice the share of the one "
                  "below")
      ->check(CLI::Range(0u, kMaxPriority))
      ->capture_default_str();
  app->add_option("--expires", flags.expires,
                  "2027-01-31T00:00:00Z or so many days: 30d; default: never");
  return app;
}

CLI::App* AddRevoke(CLI::App& parent, Flags& flags) {
  CLI::App* app = parent.add_subcommand(
      "revoke",
      "Refuse a key from the next request on; its streams end "
      "by themselves");
  app->add_option("NAME", flags.key.name, "Of the key")->required();
  AddFileFlag(*app, flags);
  app->add_flag("--remove", flags.remove,
                "Take it out of the file: its name is free again");
  return app;
}

}  // namespace

Command AddKeys(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* app =
      parent.add_subcommand("keys", "Make, revoke and list API keys");
  app->require_subcommand(1);
  CLI::App* add = AddAdd(*app, *flags);
  CLI::App* revoke = AddRevoke(*app, *flags);
  CLI::App* list =
      app->add_subcommand("list", "Show the keys of a file, without secrets");
  AddFileFlag(*list, *flags);
  app->footer(
      "Gateways that run see a change of the file within a second.\n"
      "Examples:\n"
      "  troupe keys add alice --file keys.json --requests-per-minute 60 > "
      "alice.key\n"
      "  troupe serve models/demo --api-keys keys.json\n"
      "  troupe generate \"Once\" --api-key-file alice.key\n"
      "  troupe keys revoke alice --file keys.json");
  return {app, [=] {
            if (add->parsed()) return Add(*flags);
            return revoke->parsed() ? Revoke(*flags) : List(*flags);
          }};
}

}  // namespace troupe
