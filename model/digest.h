// XXH3, 128 bits: detects change and tells contents apart; no protection
// against somebody who forges.
#ifndef TROUPE_MODEL_DIGEST_H_
#define TROUPE_MODEL_DIGEST_H_

#include <cstddef>
#include <memory>
#include <string>

struct XXH3_state_s;

namespace troupe {

// Not thread-safe.
class Digest {
 public:
  Digest();
  ~Digest();

  void Update(const void* data, size_t num_bytes);
  // 32 hex digits, as xxh128sum prints them.
  std::string Hex() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace troupe

#endif  // TROUPE_MODEL_DIGEST_H_
