#include "common/descriptor_limit.h"

#include <sys/resource.h>

#include <cerrno>
#include <cstring>

#include "common/logging.h"

namespace troupe {

uint64_t RaiseDescriptorLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  const rlim_t before = limit.rlim_cur;
  limit.rlim_cur = limit.rlim_max;
  if (before < limit.rlim_max && setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    spdlog::warn("the limit on open descriptors stays at {}: {}", before,
                 strerror(errno));
    return before;
  }
  spdlog::debug("open descriptors: at most {}, was {}", limit.rlim_cur, before);
  return limit.rlim_cur;
}

}  // namespace troupe
