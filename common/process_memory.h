// What the kernel says of this process's memory.
#ifndef TROUPE_COMMON_PROCESS_MEMORY_H_
#define TROUPE_COMMON_PROCESS_MEMORY_H_

#include <cstdint>

namespace troupe {

// Resident set size in bytes; 0 when it cannot be read.
uint64_t ResidentBytes();

}  // namespace troupe

#endif  // TROUPE_COMMON_PROCESS_MEMORY_H_
