// How keys share what there is too little of: pure functions of values.
#ifndef TROUPE_GATEWAY_FAIR_SHARE_H_
#define TROUPE_GATEWAY_FAIR_SHARE_H_

#include <cstdint>

namespace troupe {

// 0 is served last. A key of priority p counts 2^p keys of priority 0.
inline constexpr uint32_t kMaxPriority = 3;
inline constexpr uint32_t kDefaultPriority = 1;

uint64_t WeightOf(uint32_t priority);

// Something of which there is `capacity` (places, prompt tokens that wait), as
// the key that asks for more of it finds it.
struct ShareState {
  uint64_t capacity = 0;
  uint64_t used = 0;  // by all keys
  uint64_t held = 0;  // by the key that asks
  uint64_t weight = 0;
  uint64_t other_weight = 0;  // of the other keys that hold something
};

// The part that is kept for keys below their fair share: an eighth, at least 1
// of two or more.
uint64_t KeptShare(uint64_t capacity);

// capacity * weight / (weights of all that hold something, the asker's and one
// of the default priority: for whoever comes next), at least 1.
uint64_t FairShare(const ShareState& state);

enum class ShareAnswer {
  kEnter,
  kFull,       // whoever asks
  kOverShare,  // only the kept part is left, and the key has its share
};

// Whether the key may take `cost` more.
//
// The rule: up to capacity - kept everybody may enter; of the rest, a key may
// take only what its fair share allows, or its first request. What follows:
//
// 1. No key fills the gateway: beyond capacity - kept it stops at its share,
//    and both are less than the capacity when that is 2 or more (FairShare has
//    the next comer's weight in the divisor). A key that holds nothing is
//    refused only where all is taken, and then at least the kept part is held
//    by keys that took it within their shares.
// 2. A key that is alone is held back by the kept part at most. Places are not
//    what computes: routers batch far fewer sequences than a gateway admits.
// 3. Shares are reached without cutting off anybody: while used >=
//    capacity - kept, what a request leaves goes to keys below their shares
//    only. So as long as one of those asks, keys above theirs only shrink.
// 4. Nobody starves: a share is at least one request, of every priority.
//
// A cost above the capacity enters where nothing is used: it would never else.
ShareAnswer AskShare(const ShareState& state, uint64_t cost);

// For a request that was refused: what part of the mean stay of the requests
// that are in will pass until enough has been left, if they leave evenly. It
// enters once all leave enough, or its own key's requests do.
double StaysUntilEntry(const ShareState& state, uint64_t cost);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_FAIR_SHARE_H_
