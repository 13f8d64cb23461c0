// How many descriptors this process may have open.
#ifndef TROUPE_COMMON_DESCRIPTOR_LIMIT_H_
#define TROUPE_COMMON_DESCRIPTOR_LIMIT_H_

#include <cstdint>

namespace troupe {

// Raises the soft limit on open descriptors to the hard one, which a service
// may do without rights, and returns it; 0 when it cannot be read. A server
// that runs out of descriptors stays deaf (docs/security.md). Logs both at
// debug. Call at the start of main.
uint64_t RaiseDescriptorLimit();

}  // namespace troupe

#endif  // TROUPE_COMMON_DESCRIPTOR_LIMIT_H_
