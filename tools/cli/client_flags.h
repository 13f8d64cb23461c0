// How a command reaches a gateway: the flags of all that are its clients.
#ifndef TROUPE_TOOLS_CLI_CLIENT_FLAGS_H_
#define TROUPE_TOOLS_CLI_CLIENT_FLAGS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "common/rpc/credentials.h"
#include "tools/cli/gateway_client.h"

namespace troupe {

struct ClientFlags {
  std::string address = kDefaultAddress;
  std::string api_key;  // empty: none
  TlsOptions tls;

  // From the files, once the command line has been read; null: plain text.
  std::shared_ptr<const Tls> loaded;
  std::shared_ptr<grpc::ChannelCredentials> to_gateway;
  std::shared_ptr<grpc::ChannelCredentials> to_experts;
};

// --address, --api-key, --tls-cert, --tls-key and --tls-ca. A file that is not
// good is an error of the command line. `flags` must live as long as `app`.
void AddClientFlags(CLI::App& app, ClientFlags& flags,
                    const std::string& address_help = "Of the gateway");

// --admin-port of expert processes.
void AddAdminPort(CLI::App& app, uint32_t& port);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_CLIENT_FLAGS_H_
