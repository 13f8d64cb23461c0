#include "tests/robustness/process_watch.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace troupe {
namespace {

constexpr size_t kNumLast = 3;

size_t CountEntries(const std::string& folder) {
  std::error_code error;
  size_t count = 0;
  for (std::filesystem::directory_iterator it(folder, error), end;
       !error && it != end; it.increment(error)) {
    ++count;
  }
  return count;
}

}  // namespace

ProcessSize SizeOfProcess(pid_t pid) {
  const std::string folder = absl::StrCat("/proc/", pid);
  ProcessSize size;
  std::ifstream statm(folder + "/statm");
  double total_pages = 0;
  double resident_pages = 0;
  statm >> total_pages >> resident_pages;
  size.resident_mib =
      resident_pages * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
  size.descriptors = CountEntries(folder + "/fd");
  size.threads = CountEntries(folder + "/task");
  return size;
}

void ProcessWatch::Add(const std::string& name, pid_t pid,
                       const ProcessSize& size) {
  samples_[{name, pid}].push_back(size);
}

std::vector<std::string> ProcessWatch::Problems(
    const GrowthLimits& limits) const {
  std::vector<std::string> problems;
  for (const auto& [process, samples] : samples_) {
    if (samples.size() < limits.num_warm + kNumLast) continue;
    const auto check = [&](const char* what, auto ProcessSize::*field,
                           auto limit) {
      auto before = samples[0].*field;
      for (size_t i = 1; i < limits.num_warm; ++i) {
        before = std::max(before, samples[i].*field);
      }
      auto after = samples.back().*field;
      for (size_t i = samples.size() - kNumLast; i < samples.size(); ++i) {
        after = std::min(after, samples[i].*field);
      }
      if (after > before + limit) {
        problems.push_back(absl::StrCat(
            "growth: ", what, " of ", process.first, " from ", before, " to ",
            after, " within ", samples.size(), " samples"));
      }
    };
    check("resident MiB", &ProcessSize::resident_mib, limits.resident_mib);
    check("descriptors", &ProcessSize::descriptors, limits.descriptors);
    check("threads", &ProcessSize::threads, limits.threads);
  }
  return problems;
}

std::string ProcessWatch::Report(size_t min_samples) const {
  std::string text;
  for (const auto& [process, samples] : samples_) {
    if (samples.size() < min_samples) continue;
    const ProcessSize& first = samples.front();
    const ProcessSize& last = samples.back();
    absl::StrAppendFormat(
        &text,
        "%-18s %3d samples: %.1f to %.1f MiB, %d to %d descriptors, %d to %d "
        "threads\n",
        process.first, samples.size(), first.resident_mib, last.resident_mib,
        first.descriptors, last.descriptors, first.threads, last.threads);
  }
  return text;
}

}  // namespace troupe
