#include "common/rpc/tls_flags.h"

#include "absl/strings/str_cat.h"

namespace troupe {

void AddTlsFlags(CLI::App& app, TlsOptions& options) {
  const std::string group = "TLS (docs/security.md)";
  app.add_option("--tls-cert", options.cert_file,
                 "Own certificate in PEM; read again when it changes, as the "
                 "next two")
      ->envname(kTlsVariables[0])
      ->group(group);
  app.add_option("--tls-key", options.key_file, "Its private key, in PEM")
      ->envname(kTlsVariables[1])
      ->group(group);
  app.add_option("--tls-ca", options.ca_file,
                 "Certificates of the CAs that others are trusted by, in PEM")
      ->envname(kTlsVariables[2])
      ->group(group);
}

void AddServiceTlsFlags(CLI::App& app, ServiceTlsFlags& flags,
                        bool has_admin_calls) {
  AddTlsFlags(app, flags.tls);
  CLI::Option* plain = app.add_flag(
      "--allow-plaintext", flags.allow_plaintext,
      "Listen without TLS also where other machines reach it; only on a "
      "network that you trust");
  plain->envname("TROUPE_ALLOW_PLAINTEXT");
  plain->group(app.get_option("--tls-ca")->get_group());
  if (!has_admin_calls) return;
  app.add_option("--admin-listen", flags.admin_listen,
                 "Further addresses, for admin certificates alone; admin calls "
                 "are refused elsewhere then")
      ->envname("TROUPE_ADMIN_LISTEN")
      ->delimiter(',')
      ->group(app.get_option("--tls-ca")->get_group());
}

absl::StatusOr<std::shared_ptr<const Tls>> LoadServiceTls(
    const ServiceTlsFlags& flags, TlsRole role) {
  if (!flags.tls.enabled()) {
    if (flags.admin_listen.empty()) return nullptr;
    return absl::InvalidArgumentError(
        "--admin-listen: without TLS nothing tells admins from others; give "
        "--tls-cert, --tls-key and --tls-ca");
  }
  for (const auto& [flag, file] :
       {std::pair("--tls-cert", &flags.tls.cert_file),
        std::pair("--tls-key", &flags.tls.key_file),
        std::pair("--tls-ca", &flags.tls.ca_file)}) {
    if (file->empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          flag,
          " is missing: TLS between services needs --tls-cert, --tls-key "
          "and --tls-ca"));
    }
  }
  TlsOptions options = flags.tls;
  options.roles = {role};
  return Tls::Create(options);
}

absl::StatusOr<std::shared_ptr<const Tls>> LoadClientTls(
    const TlsOptions& options) {
  if (!options.enabled()) return nullptr;
  if (options.ca_file.empty()) {
    return absl::InvalidArgumentError(
        "--tls-ca is missing: the CA by which servers are trusted");
  }
  return Tls::Create(options);
}

}  // namespace troupe
