#include "gateway/key_store.h"

#include <sys/stat.h>

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "model/strict_json.h"

namespace troupe {

// Constant once it is the store's.
struct KeyStore::Snapshot {
  ApiKeys keys;
  std::vector<std::shared_ptr<RateLimiter>> limiters;  // of keys.all()
};

KeyStore::KeyStore(const KeyStoreOptions& options, const Clock& clock)
    : options_(options), clock_(clock) {}

absl::StatusOr<std::unique_ptr<KeyStore>> KeyStore::Open(
    const KeyStoreOptions& options, const Clock& clock) {
  std::unique_ptr<KeyStore> store(new KeyStore(options, clock));
  ABSL_ASSIGN_OR_RETURN(const std::string text,
                        ReadSmallFile(options.path, kMaxKeyFileBytes));
  {
    absl::MutexLock look_lock(&store->look_mu_);
    ABSL_RETURN_IF_ERROR(store->Load(text));
    store->taken_text_ = text;
  }
  struct stat file;
  if (stat(options.path.c_str(), &file) == 0 && (file.st_mode & S_IWOTH) != 0) {
    spdlog::warn("{}: everybody may write into this file of API keys",
                 options.path);
  }
  if (options.interval > milliseconds(0)) {
    store->thread_ = std::thread([store = store.get()] { store->Watch(); });
  }
  return store;
}

KeyStore::~KeyStore() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void KeyStore::Watch() {
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      mu_.AwaitWithTimeout(absl::Condition(&stopping_),
                           absl::FromChrono(options_.interval));
      if (stopping_) return;
    }
    Look();
  }
}

absl::Status KeyStore::Load(const std::string& text) {
  absl::StatusOr<ApiKeys> keys = ApiKeys::Parse(text, options_.path);
  if (!keys.ok()) return keys.status();
  const SteadyTime now = clock_.Now();
  absl::MutexLock lock(&mu_);
  std::map<std::string, std::shared_ptr<RateLimiter>> known;
  if (snapshot_ != nullptr) {
    for (size_t i = 0; i < snapshot_->limiters.size(); ++i) {
      known[snapshot_->keys.all()[i].name] = snapshot_->limiters[i];
    }
  }
  auto snapshot = std::make_shared<Snapshot>(Snapshot{*std::move(keys), {}});
  for (const ApiKey& key : snapshot->keys.all()) {
    std::shared_ptr<RateLimiter>& limiter = known[key.name];
    if (limiter == nullptr) {
      limiter = std::make_shared<RateLimiter>(key.limits, now);
    } else {
      limiter->SetLimits(key.limits, now);
    }
    snapshot->limiters.push_back(limiter);
  }
  stats_.num_keys = snapshot->keys.all().size();
  ++stats_.changes;
  stats_.last_error.clear();
  snapshot_ = std::move(snapshot);
  spdlog::info("{}: {} API keys", options_.path, stats_.num_keys);
  return absl::OkStatus();
}

void KeyStore::Look() {
  absl::MutexLock look_lock(&look_mu_);
  // The text itself, as times and sizes miss a change within one tick of the
  // file system's clock; it is small, and in memory.
  const absl::StatusOr<std::string> text =
      ReadSmallFile(options_.path, kMaxKeyFileBytes);
  absl::Status status = text.status();
  if (text.ok() && *text == taken_text_) {
    broken_text_.reset();
    absl::MutexLock lock(&mu_);
    stats_.last_error.clear();
    return;
  }
  if (text.ok()) status = Load(*text);
  if (status.ok()) {
    taken_text_ = *text;
    broken_text_.reset();
    return;
  }
  const std::string seen = text.ok() ? *text : "";
  const bool settled = broken_text_ == seen;
  broken_text_ = seen;
  if (!settled) return;
  absl::MutexLock lock(&mu_);
  ++stats_.failures;
  const std::string error(status.message());
  if (error != stats_.last_error) {
    spdlog::error("{}; the {} API keys of before stay", error, stats_.num_keys);
  }
  stats_.last_error = error;
}

std::optional<KeyStore::Found> KeyStore::Find(
    absl::string_view presented) const {
  std::shared_ptr<const Snapshot> snapshot;
  {
    absl::MutexLock lock(&mu_);
    snapshot = snapshot_;
  }
  const int index = snapshot->keys.Find(presented);
  if (index < 0) return std::nullopt;
  const auto at = static_cast<size_t>(index);
  return Found{
      std::shared_ptr<const ApiKey>(snapshot, &snapshot->keys.all()[at]),
      snapshot->limiters[at]};
}

KeyStore::Stats KeyStore::stats() const {
  absl::MutexLock lock(&mu_);
  return stats_;
}

}  // namespace troupe
