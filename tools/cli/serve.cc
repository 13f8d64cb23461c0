// troupe serve: a whole cluster on this machine.
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "common/rpc/tls_flags.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "model/config.h"
#include "tools/cli/api_key_flag.h"
#include "tools/cli/certs.h"
#include "tools/cli/command.h"
#include "tools/cli/generation_flags.h"
#include "tools/cli/serve_plan.h"
#include "tools/cli/supervisor.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

struct Flags {
  ServeOptions serve;
  std::string transport = "unix";
  std::string once;
  GenerationFlags generation;
  std::string api_key;  // of --once
  CLI::Option* once_option = nullptr;
  CLI::Option* log_level_option = nullptr;
  CLI::Option* http_option = nullptr;
};

// A folder for sockets that nobody else may enter; gone at the end.
class RunDir {
 public:
  static absl::StatusOr<std::unique_ptr<RunDir>> Create() {
    // A socket's path has at most 107 bytes; /tmp is always short enough.
    const char* base = std::getenv("XDG_RUNTIME_DIR");
    std::string path = base != nullptr && std::string(base).size() < 60
                           ? absl::StrCat(base, "/troupe-XXXXXX")
                           : "/tmp/troupe-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) {
      path = "/tmp/troupe-XXXXXX";
      if (mkdtemp(path.data()) == nullptr) {
        return absl::InternalError("cannot make a folder in /tmp");
      }
    }
    return std::unique_ptr<RunDir>(new RunDir(path));
  }
  ~RunDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  explicit RunDir(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// A port that was free a moment ago.
absl::StatusOr<std::string> FreeTcpAddress() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  const bool ok =
      fd >= 0 &&
      bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  if (fd >= 0) close(fd);
  if (!ok) return absl::UnavailableError("no free TCP port on 127.0.0.1");
  return absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
}

absl::StatusOr<std::string> BinaryDir() {
  std::error_code error;
  const std::filesystem::path self =
      std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::InternalError("cannot read /proc/self/exe");
  for (const char* name :
       {"troupe-gateway", "troupe-router", "troupe-expert"}) {
    if (!std::filesystem::exists(self.parent_path() / name, error)) {
      return absl::NotFoundError(
          absl::StrCat(name, " is not beside ", self.string(), "; build it"));
    }
  }
  return self.parent_path().string();
}

// Standard error, with a last line that is replaced while processes load.
class Screen {
 public:
  explicit Screen(bool terminal) : terminal_(terminal) {}

  void Line(const std::string& line) {
    if (has_status_) std::fputs("\r\x1b[K", stderr);
    std::fprintf(stderr, "%s\n",
                 (terminal_ ? WithoutControls(line) : line).c_str());
    has_status_ = false;
  }
  void Status(const std::string& line) {
    if (line.empty() && !has_status_) return;
    const std::string cut = line.substr(0, TerminalColumns(STDERR_FILENO) - 1);
    std::fprintf(stderr, "\r\x1b[K%s", cut.c_str());
    std::fflush(stderr);
    has_status_ = !line.empty();
  }

 private:
  const bool terminal_;
  bool has_status_ = false;
};

// Where clients reach the gateway, from its own words (a port 0 is resolved).
class Addresses {
 public:
  explicit Addresses(std::string inner) : inner_(std::move(inner)) {}

  bool Take(const std::string& process, const std::string& line) {
    absl::string_view rest = line;
    if (process != "gateway") return false;
    const bool http = absl::ConsumePrefix(&rest, "http on ");
    if (!http && !absl::ConsumePrefix(&rest, "listening on ")) return false;
    const std::string address =
        http ? absl::StrCat("http://", rest) : std::string(rest);
    // A gateway that was started again says the same.
    if (rest != inner_ && !absl::StrContains(all_, address)) {
      absl::StrAppend(&all_, all_.empty() ? "" : ", ", address);
    }
    return true;
  }
  const std::string& all() const { return all_; }

 private:
  const std::string inner_;
  std::string all_;
};

absl::Status AnswerOnce(const Flags& flags, GatewayClient& client) {
  ABSL_ASSIGN_OR_RETURN(v1::GenerateRequest request,
                        MakeRequest(client, flags.generation));
  request.set_text(flags.once);
  v1::Usage usage;
  std::string text;
  // The story with its beginning.
  request.set_echo(true);
  ABSL_RETURN_IF_ERROR(
      StreamToStdout(client, request, flags.generation, &usage, &text));
  std::fprintf(stderr, "[%s]\n", DescribeUsage(usage).c_str());
  return absl::OkStatus();
}

std::string ReadyLine(const std::vector<ProcessSpec>& processes,
                      const std::string& addresses) {
  size_t experts = 0;
  size_t routers = 0;
  for (const ProcessSpec& process : processes) {
    experts += process.tier == ProcessTier::kExpert;
    routers += process.tier == ProcessTier::kRouter;
  }
  return absl::StrCat("troupe | ready: gateway on ", addresses, ", ", routers,
                      routers == 1 ? " router, " : " routers, ", experts,
                      " expert processes. Ctrl-C drains and ends.");
}

absl::Status Serve(Flags& flags) {
  ABSL_ASSIGN_OR_RETURN(const ModelConfig config,
                        LoadModelConfig(flags.serve.model_dir));
  ABSL_ASSIGN_OR_RETURN(flags.serve.binary_dir, BinaryDir());
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<RunDir> run_dir,
                        RunDir::Create());
  flags.serve.run_dir = run_dir->path();
  // Of the routers: so it is that of --once, too.
  flags.serve.fallback = flags.generation.fallback;
  if (flags.serve.threads == 0) flags.serve.threads = AvailableThreads();
  const bool once = flags.once_option->count() > 0;
  if (once && flags.log_level_option->count() == 0) {
    flags.serve.log_level = "warn";
  }
  if (once && flags.http_option->count() == 0) flags.serve.http = {"none"};
  const NewAddress new_address =
      [&](const std::string& name) -> absl::StatusOr<std::string> {
    if (flags.transport == "tcp") return FreeTcpAddress();
    return absl::StrCat("unix:", run_dir->path(), "/", name, ".sock");
  };
  ABSL_ASSIGN_OR_RETURN(
      const std::vector<ProcessSpec> processes,
      PlanProcesses(flags.serve, config.num_experts, new_address));

  std::shared_ptr<const Tls> tls;  // of the health probes
  if (!flags.serve.certs_dir.empty()) {
    ABSL_ASSIGN_OR_RETURN(
        tls, Tls::Create(CertsOf(flags.serve.certs_dir, TlsRole::kAdmin)));
  }
  const bool terminal = IsTerminal(STDERR_FILENO);
  Screen screen(terminal);
  const std::string inner = processes.back().address;
  Addresses addresses(inner);
  SupervisorOptions options;
  if (tls != nullptr) {
    options.credentials = {
        {ProcessTier::kExpert, tls->ForChannels(TlsRole::kExpert)},
        {ProcessTier::kRouter, tls->ForChannels(TlsRole::kRouter)}};
  }
  options.kill_after_seconds = flags.serve.drain_seconds + 10;
  options.log = [&](const std::string& line) { screen.Line(line); };
  if (terminal) {
    options.status = [&](const std::string& line) { screen.Status(line); };
  }
  options.take_line = [&](const std::string& process, const std::string& line) {
    return addresses.Take(process, line);
  };
  Supervisor supervisor(processes, std::move(options));
  ABSL_RETURN_IF_ERROR(supervisor.Start());
  screen.Line(ReadyLine(processes, addresses.all()));
  if (!once) {
    supervisor.Supervise();
    screen.Line("troupe | draining");
    return supervisor.Drain();
  }
  GatewayClient client(inner, flags.api_key);
  absl::Status answer;
  std::thread asking([&] {
    answer = AnswerOnce(flags, client);
    supervisor.RequestStop();
  });
  supervisor.Supervise();
  client.CancelAll();  // when a signal ended the supervision
  asking.join();
  const absl::Status drained = supervisor.Drain();
  return answer.ok() ? drained : answer;
}

int Run(Flags& flags) {
  // Before any thread starts; the supervisor reads them from a descriptor.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGINT, SIGTERM, SIGCHLD}) {
    sigaddset(&signals, number);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  // They are a client's; the processes are told by flags.
  for (const char* variable : kTlsVariables) unsetenv(variable);
  const absl::Status status = Serve(flags);
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "troupe: %s\n", std::string(status.message()).c_str());
  return absl::IsCancelled(status) ? kExitInterrupted : kExitFailed;
}

void AddClusterFlags(CLI::App& app, Flags& flags) {
  ServeOptions& serve = flags.serve;
  app.add_option("MODEL_DIR", serve.model_dir,
                 "Checkpoint in Hugging Face format")
      ->envname("TROUPE_MODEL_DIR")
      ->required();
  app.add_option("--experts", serve.num_expert_processes,
                 "Expert processes; default: 4, at most one per expert")
      ->check(CLI::Range(0, 4096));
  app.add_option("--replicas", serve.replicas,
                 "Processes that own the same experts")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--routers", serve.num_routers, "Router processes")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--listen", serve.listen,
                 "The gateway's address: host:port (port 0: any) or "
                 "unix:/path; may be repeated")
      ->capture_default_str();
  flags.http_option =
      app.add_option("--http", serve.http,
                     "Of the OpenAI-style HTTP API: host:port (port 0: any) "
                     "or none, which --once means, too; may be repeated")
          ->capture_default_str();
  app.add_option("--certs", serve.certs_dir,
                 "Folder of certificates (troupe certs init): the gateway "
                 "speaks TLS with clients, the processes mutual TLS where they "
                 "use TCP")
      ->envname("TROUPE_CERTS");
  app.add_flag("--require-client-certs", serve.require_client_certs,
               "The gateway refuses clients without a certificate");
  app.add_flag("--allow-plaintext", serve.allow_plaintext,
               "The gateway listens without TLS also where other machines "
               "reach it; only on a network that you trust");
  app.add_option("--model-name", serve.model_name,
                 "Default: the folder's name");
  app.add_option("--api-keys", serve.api_keys,
                 "File of the API keys that the gateway lets in (troupe keys "
                 "add writes it); default: everybody is let in")
      ->envname("TROUPE_API_KEYS");
  app.add_option("--transport", flags.transport,
                 "Between the processes: unix sockets or tcp on 127.0.0.1")
      ->check(CLI::IsMember({"unix", "tcp"}))
      ->capture_default_str();
  app.add_option("--hop", serve.hop,
                 "How hidden states go to the experts: auto (shared memory), "
                 "shm or grpc")
      ->check(CLI::IsMember({"auto", "grpc", "shm"}));
  app.add_option("--wire-dtype", serve.wire_dtype,
                 "Of the hidden states on the way: float32 or bfloat16")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_flag("--ops", serve.ops,
               "Each process serves /livez, /readyz and /metrics on a port of "
               "127.0.0.1 that it prints");
  app.add_option("--threads", serve.threads,
                 "Of each process's kernels; 0: all that may be used (the "
                 "processes take turns)")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

void AddLimitFlags(CLI::App& app, Flags& flags) {
  ServeOptions& serve = flags.serve;
  const std::string group = "Limits (0: the default of the service)";
  app.add_option("--kv-blocks", serve.kv_blocks, "KV blocks of 16 tokens")
      ->group(group);
  app.add_option("--max-batch-tokens", serve.max_batch_tokens,
                 "Tokens of one step")
      ->group(group);
  app.add_option("--max-sequences", serve.max_sequences,
                 "Sequences that a router runs at once")
      ->group(group);
  app.add_option("--max-queued", serve.max_queued,
                 "Sequences that wait at a router")
      ->group(group);
  app.add_option("--kv-dtype", serve.kv_dtype,
                 "Format of the KV cache: float32 (default), or bfloat16 in "
                 "half the memory")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->group(group);
  app.add_option("--capacity-factor", serve.capacity_factor,
                 "Copies per expert, layer and step, in shares of the mean, "
                 "of requests whose fallback is not exact; default: all")
      ->check(CLI::Range(0.0, 1e6))
      ->group(group);
  app.add_option("--refuse", serve.refuse,
                 "Which copies an expert refuses: position (default), weight "
                 "or random")
      ->check(CLI::IsMember({"position", "weight", "random"}))
      ->group(group);
  app.add_flag("--no-prefix-cache", serve.no_prefix_cache,
               "Routers compute every prompt anew")
      ->group(group);
  app.add_option("--max-requests", serve.max_requests,
                 "Requests in progress at the gateway")
      ->group(group);
  app.add_option("--queue-rows", serve.queue_rows,
                 "Rows that wait at an expert process")
      ->group(group);
  app.add_option("--hop-ring-kb", serve.hop_ring_kb,
                 "Shared memory per router, expert process and direction, KiB")
      ->group(group);
  app.add_option("--drain-seconds", serve.drain_seconds,
                 "On Ctrl-C: time for running streams to end")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  flags.log_level_option =
      app.add_option("--log-level", serve.log_level, "Of all processes")
          ->check(
              CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}))
          ->capture_default_str();
}

}  // namespace

Command AddServe(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand(
      "serve", "Start a gateway, routers and expert processes on this machine");
  AddClusterFlags(*app, *flags);
  AddLimitFlags(*app, *flags);
  flags->once_option = app->add_option(
      "--once", flags->once, "Answer this prompt on standard output, then end");
  AddGenerationFlags(*app, flags->generation);
  AddApiKeyFlag(*app, flags->api_key);
  app->footer(
      "The processes are the binaries troupe-gateway, troupe-router and\n"
      "troupe-expert beside this one. One that dies is started again. Ctrl-C "
      "lets\nrunning requests end, a second one kills everything.\n"
      "The generation flags are those of --once.\n"
      "Examples:\n"
      "  troupe serve models/demo\n"
      "  troupe serve models/demo --experts 8 --replicas 2\n"
      "  troupe serve models/demo --listen 0.0.0.0:7070 --certs certs\n"
      "  troupe serve models/demo --once \"Once upon a time\"");
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace troupe
