// Whom a gateway lets in that it should not.
#ifndef TROUPE_GATEWAY_EXPOSURE_H_
#define TROUPE_GATEWAY_EXPOSURE_H_

#include <string>

namespace troupe {

// Logs loudly when `address` can be reached from other machines and callers
// need neither a key nor a certificate. Returns whether it did.
bool WarnWhenOpen(const std::string& address, bool demands_keys,
                  bool demands_certificates);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_EXPOSURE_H_
