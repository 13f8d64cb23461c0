#include "tools/cli/client_flags.h"

#include "common/rpc/tls_flags.h"
#include "tools/cli/api_key_flag.h"

namespace troupe {

void AddClientFlags(CLI::App& app, ClientFlags& flags,
                    const std::string& address_help) {
  app.add_option("--address", flags.address, address_help)
      ->envname("TROUPE_ADDRESS")
      ->capture_default_str();
  AddApiKeyFlag(app, flags.api_key);
  AddTlsFlags(app, flags.tls);
  app.parse_complete_callback([&flags] {
    const absl::StatusOr<std::shared_ptr<const Tls>> tls =
        LoadClientTls(flags.tls);
    if (!tls.ok()) {
      throw CLI::ValidationError(std::string(tls.status().message()));
    }
    if (*tls == nullptr) return;
    flags.loaded = *tls;
    flags.to_gateway = flags.loaded->ForChannels(TlsRole::kGateway);
    flags.to_experts = flags.loaded->ForChannels(TlsRole::kExpert);
  });
}

void AddAdminPort(CLI::App& app, uint32_t& port) {
  app.add_option("--admin-port", port,
                 "Port of the expert processes' --admin-listen; default: they "
                 "have none, admin calls go where routers' do")
      ->check(CLI::Range(1, 65535));
}

}  // namespace troupe
