// troupe certs: certificates of a development cluster.
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tools/cli/certs.h"
#include "tools/cli/command.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

constexpr int kMostDays = 36500;

struct Flags {
  CertsOptions init;
  std::string path;
  std::vector<std::string> roles;
  CLI::App* init_command = nullptr;
  CLI::App* renew_command = nullptr;
};

std::vector<TlsRole> RolesOf(const std::vector<std::string>& names) {
  std::vector<TlsRole> roles;
  for (const TlsRole role : kAllTlsRoles) {
    for (const std::string& name : names) {
      if (name == TlsRoleName(role)) roles.push_back(role);
    }
  }
  return roles;
}

absl::Status Do(const Flags& flags) {
  if (flags.init_command->parsed()) {
    const absl::Status status = InitCerts(flags.init);
    if (!status.ok()) return status;
    std::fprintf(stderr,
                 "%s: a CA and one certificate per role of cluster %s. The "
                 "keys are yours alone; ca.key signs more of them, and no "
                 "service needs it.\nNext: troupe serve MODEL_DIR --certs %s\n",
                 flags.init.dir.c_str(), flags.init.cluster.c_str(),
                 flags.init.dir.c_str());
    return status;
  }
  if (flags.renew_command->parsed()) {
    return RenewCerts(flags.init.dir, flags.init.days, RolesOf(flags.roles));
  }
  const absl::StatusOr<std::string> text =
      DescribeCerts(flags.path, std::chrono::system_clock::now());
  if (!text.ok()) return text.status();
  std::fputs(WithoutControls(*text).c_str(), stdout);
  return absl::OkStatus();
}

void AddDays(CLI::App& app, Flags& flags) {
  app.add_option("--days", flags.init.days, "That long they are good")
      ->check(CLI::Range(1, kMostDays))
      ->capture_default_str();
}

}  // namespace

Command AddCerts(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand(
      "certs", "Certificates for TLS within and in front of a cluster");
  app->require_subcommand(1);
  CLI::App* init = app->add_subcommand(
      "init", "Make a CA and a certificate for every role, for development");
  init->add_option("DIR", flags->init.dir, "A folder, new or empty")
      ->required();
  init->add_option("--cluster", flags->init.cluster,
                   "Processes of another cluster are refused")
      ->required();
  init->add_option("--host", flags->init.hosts,
                   "Name or IP address that services are dialled by, for "
                   "clients that check it, besides localhost; may be repeated")
      ->delimiter(',');
  AddDays(*init, *flags);
  CLI::App* renew = app->add_subcommand(
      "renew",
      "New keys and certificates from a set's CA; running processes "
      "take them up");
  renew->add_option("DIR", flags->init.dir, "The set")->required();
  std::vector<std::string> names;
  for (const TlsRole role : kAllTlsRoles) names.emplace_back(TlsRoleName(role));
  renew->add_option("ROLE", flags->roles, "Of these alone; default: all")
      ->check(CLI::IsMember(names));
  AddDays(*renew, *flags);
  CLI::App* show = app->add_subcommand(
      "show", "Print subject, names and expiry of certificates");
  show->add_option("PATH", flags->path, "A PEM file, or a folder of *.pem")
      ->required();
  flags->init_command = init;
  flags->renew_command = renew;
  app->footer(
      "Examples:\n"
      "  troupe certs init certs --cluster demo\n"
      "  troupe certs show certs\n"
      "  troupe certs renew certs expert");
  return {app, [flags] {
            const absl::Status status = Do(*flags);
            if (status.ok()) return kExitOk;
            std::fprintf(stderr, "troupe: %s\n",
                         std::string(status.message()).c_str());
            return kExitFailed;
          }};
}

}  // namespace troupe
