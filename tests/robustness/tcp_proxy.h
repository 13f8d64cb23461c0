// A TCP proxy that makes a network bad: late, silent, or cut.
#ifndef TROUPE_TESTS_ROBUSTNESS_TCP_PROXY_H_
#define TROUPE_TESTS_ROBUSTNESS_TCP_PROXY_H_

#include <cstddef>
#include <deque>
#include <list>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"

namespace troupe {

// Listens on one address and carries bytes to another. IPv4 addresses in
// numbers. Owns its sockets and the thread that serves them. Thread-safe.
class TcpProxy {
 public:
  TcpProxy(const std::string& listen_host, int listen_port,
           std::string target_host, int target_port);
  ~TcpProxy();
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;

  // From now on bytes arrive so much later, in each direction.
  void SetDelay(milliseconds delay);
  // True: nothing gets through, and nobody is told; connections stay. What was
  // sent meanwhile arrives when it ends.
  void SetBlackhole(bool blackhole);
  // Ends every connection by RST, on both sides.
  void ResetAll();

  size_t num_connections() const;

 private:
  // Bytes on their way from `from` to `to`.
  struct Direction {
    struct Piece {
      SteadyTime due;
      std::string bytes;
    };
    std::deque<Piece> pieces;
    size_t num_bytes = 0;
    bool ended = false;  // FIN came; it is passed on behind the pieces
    bool closed = false;
  };
  struct Connection {
    int client = -1;
    int server = -1;
    bool connecting = true;
    Direction to_server;
    Direction to_client;
  };

  void Run();
  void Accept() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // False: the connection is over.
  bool Serve(Connection& connection, short client_events, short server_events,
             SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Read(int from, Direction& direction, SteadyTime now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Write(int to, Direction& direction, SteadyTime now);
  static void Close(Connection& connection, bool reset);
  void Wake();

  const std::string target_host_;
  const int target_port_;
  int listen_fd_ = -1;
  int wake_fd_ = -1;

  mutable absl::Mutex mu_;
  std::list<Connection> connections_ ABSL_GUARDED_BY(mu_);
  milliseconds delay_ ABSL_GUARDED_BY(mu_){0};
  bool blackhole_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_ROBUSTNESS_TCP_PROXY_H_
