// Which listen addresses other machines reach.
#ifndef TROUPE_COMMON_RPC_LOCAL_ADDRESS_H_
#define TROUPE_COMMON_RPC_LOCAL_ADDRESS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace troupe {

// "127.0.0.1:80", "[::1]:80", "localhost:80" and "unix:/path": nobody on
// another machine gets there. False for what it does not know.
bool IsLocalAddress(absl::string_view address);

// FailedPrecondition, with what to do, when a listener without TLS could be
// reached from other machines and that was not asked for.
absl::Status CheckPlaintext(const std::string& address, bool allow_plaintext);

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_LOCAL_ADDRESS_H_
