#include "cluster/address_source.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

constexpr absl::string_view kUnix = "unix:";
constexpr absl::string_view kFile = "file:";
constexpr absl::string_view kDns = "dns:";
// A list that is longer is no list of peers.
constexpr size_t kMaxFileBytes = 1 << 20;

SteadyTime Now() { return Clock::Real().Now(); }

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxFileBytes + 1, '\0');
  if (!file || !file.read(text.data(), 0)) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  }
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad()) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": longer than ", kMaxFileBytes, " bytes"));
  }
  return text;
}

std::string WithPort(const std::string& host, const std::string& port) {
  return absl::StrContains(host, ':') ? absl::StrCat("[", host, "]:", port)
                                      : absl::StrCat(host, ":", port);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ResolveBySystem(
    const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat(host, ": ", gai_strerror(error)));
  }
  std::vector<std::string> addresses;
  for (const addrinfo* entry = found; entry != nullptr;
       entry = entry->ai_next) {
    char text[NI_MAXHOST];
    if (getnameinfo(entry->ai_addr, entry->ai_addrlen, text, sizeof(text),
                    nullptr, 0, NI_NUMERICHOST) == 0) {
      addresses.emplace_back(text);
    }
  }
  freeaddrinfo(found);
  return addresses;
}

absl::Status CheckAddress(const std::string& address) {
  const absl::Status wrong = absl::InvalidArgumentError(
      absl::StrCat("\"", address,
                   "\" is neither host:port, port 1 to 65535, nor "
                   "unix:/path"));
  if (address.find_first_of(" \t\r\n") != std::string::npos) return wrong;
  if (absl::StartsWith(address, kUnix)) {
    return address.size() > kUnix.size() ? absl::OkStatus() : wrong;
  }
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port == 0 ||
      port > 65535) {
    return wrong;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ParseAddressList(
    absl::string_view text) {
  std::vector<std::string> addresses;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    const absl::Status status = CheckAddress(std::string(line));
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", std::string(status.message())));
    }
    addresses.emplace_back(line);
  }
  return addresses;
}

// Shared by the object and the threads, which outlive it by one look.
struct AddressSource::State {
  // A file or a name.
  struct Watched {
    std::string path;  // of a file; empty: a name
    std::string host;
    std::string port;
    // Of its own thread (that of Start before).
    std::string seen_text;  // of the file, at the last look
    std::string taken_text;
    bool has_looked = false;
    // Guarded by mu.
    Source known;
    SteadyTime succeeded;
  };

  // The file's addresses; none when it has not changed or is being written.
  static absl::StatusOr<std::optional<std::vector<std::string>>> LookAtFile(
      Watched& watched) {
    ABSL_ASSIGN_OR_RETURN(std::string text, ReadSmallFile(watched.path));
    const bool settled = !watched.has_looked || text == watched.seen_text;
    const bool taken = watched.has_looked && text == watched.taken_text;
    watched.has_looked = true;
    watched.seen_text = text;
    if (!settled || taken) return std::nullopt;
    absl::StatusOr<std::vector<std::string>> list = ParseAddressList(text);
    if (!list.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          watched.path, ": ", std::string(list.status().message())));
    }
    watched.taken_text = std::move(text);
    return *std::move(list);
  }

  absl::StatusOr<std::optional<std::vector<std::string>>> LookAtName(
      const Watched& watched) const {
    ABSL_ASSIGN_OR_RETURN(const std::vector<std::string> hosts,
                          options.resolve(watched.host));
    if (hosts.empty()) {
      return absl::UnavailableError(
          absl::StrCat(watched.host, ": the name has no address"));
    }
    std::vector<std::string> addresses;
    for (const std::string& host : hosts) {
      addresses.push_back(WithPort(host, watched.port));
    }
    return addresses;
  }

  void Look(Watched& watched) ABSL_LOCKS_EXCLUDED(mu) {
    absl::StatusOr<std::optional<std::vector<std::string>>> found =
        watched.path.empty() ? LookAtName(watched) : LookAtFile(watched);
    absl::MutexLock lock(&mu);
    if (stopping) return;
    Source& known = watched.known;
    if (!found.ok()) {
      ++known.failures;
      const std::string error(found.status().message());
      if (error != known.last_error) {
        spdlog::warn("{}: {}; {} addresses stay", known.spec, error,
                     known.addresses.size());
      }
      known.last_error = error;
      return;
    }
    watched.succeeded = Now();
    known.last_error.clear();
    if (!found->has_value()) return;
    std::sort((*found)->begin(), (*found)->end());
    (*found)->erase(std::unique((*found)->begin(), (*found)->end()),
                    (*found)->end());
    if (**found == known.addresses) return;
    ++known.changes;
    known.addresses = *std::move(*found);
    spdlog::info("{}: {} addresses", known.spec, known.addresses.size());
  }

  std::vector<std::string> Union() const ABSL_SHARED_LOCKS_REQUIRED(mu) {
    std::set<std::string> all(fixed.begin(), fixed.end());
    for (const auto& source : watched) {
      all.insert(source->known.addresses.begin(),
                 source->known.addresses.end());
    }
    return {all.begin(), all.end()};
  }

  // Only here the listener is called.
  void Tell() ABSL_LOCKS_EXCLUDED(mu, call_mu) {
    absl::MutexLock call_lock(&call_mu);
    std::vector<std::string> all;
    {
      absl::MutexLock lock(&mu);
      all = Union();
      if (stopping || all == told) return;
      told = all;
    }
    listener(all);
  }

  AddressSourceOptions options;
  std::vector<std::string> fixed;
  std::vector<std::unique_ptr<Watched>> watched;  // the list is constant
  SteadyTime start;
  Listener listener;  // constant once the threads run

  absl::Mutex call_mu;  // before mu; held while the listener runs
  mutable absl::Mutex mu;
  bool stopping ABSL_GUARDED_BY(mu) = false;
  std::optional<std::vector<std::string>> told ABSL_GUARDED_BY(mu);
};

AddressSource::AddressSource(std::shared_ptr<State> state)
    : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<AddressSource>> AddressSource::Create(
    AddressSourceOptions options) {
  auto state = std::make_shared<State>();
  state->start = Now();
  for (const std::string& spec : options.specs) {
    auto watched = std::make_unique<State::Watched>();
    watched->known.spec = spec;
    watched->succeeded = state->start;
    absl::string_view rest = spec;
    if (absl::ConsumePrefix(&rest, kFile)) {
      if (rest.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("\"", spec, "\" names no file"));
      }
      watched->path = std::string(rest);
    } else if (absl::ConsumePrefix(&rest, kDns)) {
      const absl::Status status = CheckAddress(std::string(rest));
      if (!status.ok() || absl::StartsWith(rest, kUnix)) {
        return absl::InvalidArgumentError(
            absl::StrCat("\"", spec,
                         "\" is not dns:name:port, port 1 to "
                         "65535"));
      }
      watched->host = std::string(rest.substr(0, rest.rfind(':')));
      watched->port = std::string(rest.substr(rest.rfind(':') + 1));
    } else {
      ABSL_RETURN_IF_ERROR(CheckAddress(spec));
      state->fixed.push_back(spec);
      continue;
    }
    state->watched.push_back(std::move(watched));
  }
  state->options = std::move(options);
  return std::unique_ptr<AddressSource>(new AddressSource(std::move(state)));
}

AddressSource::~AddressSource() { Stop(); }

void AddressSource::Stop() {
  absl::MutexLock call_lock(&state_->call_mu);
  absl::MutexLock lock(&state_->mu);
  state_->stopping = true;
}

void AddressSource::Start(Listener listener) {
  state_->listener = std::move(listener);
  for (const auto& watched : state_->watched) {
    if (!watched->path.empty()) state_->Look(*watched);
  }
  state_->Tell();
  for (const auto& source : state_->watched) {
    const bool is_file = !source->path.empty();
    std::thread([state = state_, watched = source.get(), is_file] {
      const milliseconds interval =
          is_file ? state->options.file_interval : state->options.dns_interval;
      bool wait = is_file;  // it has been looked at
      while (true) {
        {
          absl::MutexLock lock(&state->mu);
          if (wait) {
            state->mu.AwaitWithTimeout(absl::Condition(&state->stopping),
                                       absl::FromChrono(interval));
          }
          if (state->stopping) return;
        }
        wait = true;
        state->Look(*watched);
        state->Tell();
      }
    }).detach();
  }
}

std::vector<std::string> AddressSource::addresses() const {
  absl::MutexLock lock(&state_->mu);
  return state_->Union();
}

std::vector<AddressSource::Source> AddressSource::Describe() const {
  absl::MutexLock lock(&state_->mu);
  std::vector<Source> sources;
  for (const auto& watched : state_->watched) {
    Source source = watched->known;
    source.age_seconds =
        std::chrono::duration<double>(Now() - watched->succeeded).count();
    sources.push_back(std::move(source));
  }
  return sources;
}

}  // namespace troupe
