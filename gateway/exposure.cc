#include "gateway/exposure.h"

#include "common/logging.h"
#include "common/rpc/local_address.h"

namespace troupe {

bool WarnWhenOpen(const std::string& address, bool demands_keys,
                  bool demands_certificates) {
  if (demands_keys || demands_certificates || IsLocalAddress(address)) {
    return false;
  }
  spdlog::warn(
      "ANYBODY WHO REACHES {} MAY USE THIS GATEWAY: it demands neither API "
      "keys (--api-keys) nor client certificates",
      address);
  return true;
}

}  // namespace troupe
