#include "common/metrics/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <sstream>

namespace troupe {
namespace {

// /proc/self/stat: of its fields, numbered as in proc(5).
struct Stat {
  double user_ticks = 0;      // 14
  double system_ticks = 0;    // 15
  double start_ticks = 0;     // 22, since the boot
  double virtual_bytes = 0;   // 23
  double resident_pages = 0;  // 24
};

bool ReadStat(Stat& stat) {
  std::ifstream file("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  // The second field is the program's name in parentheses, whatever it holds.
  const size_t end_of_name = text.rfind(')');
  if (end_of_name == std::string::npos) return false;
  std::istringstream rest(text.substr(end_of_name + 1));
  std::string field;
  for (int number = 3; rest >> field; ++number) {
    const double value = std::strtod(field.c_str(), nullptr);
    if (number == 14) stat.user_ticks = value;
    if (number == 15) stat.system_ticks = value;
    if (number == 22) stat.start_ticks = value;
    if (number == 23) stat.virtual_bytes = value;
    if (number == 24) {
      stat.resident_pages = value;
      return true;
    }
  }
  return false;
}

// Seconds since the epoch; 0 when it cannot be read.
double BootTime() {
  std::ifstream file("/proc/stat");
  std::string word;
  while (file >> word) {
    double seconds = 0;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return 0;
}

int CountOpenFiles() {
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) return -1;
  int count = 0;
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count - 3;  // ".", ".." and the folder itself
}

}  // namespace

void AddProcessMetrics(const std::string& service, const std::string& name,
                       MetricFamilies& families) {
  families.Gauge("troupe_build_info", "Always 1; labels say what runs.")
      .Add(1,
           {{"service", service}, {"name", name}, {"version", TROUPE_VERSION}});
  Stat stat;
  if (ReadStat(stat)) {
    const auto ticks_per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
    families
        .Counter("process_cpu_seconds_total",
                 "User and system time of the process, in seconds.")
        .Add((stat.user_ticks + stat.system_ticks) / ticks_per_second);
    families
        .Gauge("process_start_time_seconds",
               "When the process started, in seconds since the epoch.")
        .Add(BootTime() + stat.start_ticks / ticks_per_second);
    families
        .Gauge("process_resident_memory_bytes", "Resident memory, in bytes.")
        .Add(stat.resident_pages * static_cast<double>(sysconf(_SC_PAGESIZE)));
    families.Gauge("process_virtual_memory_bytes", "Virtual memory, in bytes.")
        .Add(stat.virtual_bytes);
  }
  const int open_files = CountOpenFiles();
  if (open_files >= 0) {
    families.Gauge("process_open_fds", "Open file descriptors.")
        .Add(open_files);
  }
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    families.Gauge("process_max_fds", "The limit on open file descriptors.")
        .Add(static_cast<double>(limit.rlim_cur));
  }
}

}  // namespace troupe
