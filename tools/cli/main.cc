// troupe: the command line.
#include <cstdio>
#include <string>
#include <vector>

#include "common/logging.h"
#include "common/rpc/grpc_log.h"
#include "tools/cli/command.h"
#include "tools/cli/did_you_mean.h"

namespace troupe {
namespace {

constexpr char kVersion[] = "troupe 0.1.0";

// The first argument that should be a command and is none.
std::string UnknownCommand(int argc, char** argv,
                           const std::vector<Command>& commands) {
  if (argc < 2 || argv[1][0] == '-') return "";
  for (const Command& command : commands) {
    if (command.app->get_name() == argv[1]) return "";
  }
  return argv[1];
}

int Main(int argc, char** argv) {
  CLI::App app(
      "Serves Mixture-of-Experts language models as a cluster of small "
      "services.",
      "troupe");
  app.set_version_flag("--version", kVersion);
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  troupe serve models/demo --once \"Once upon a time\"\n"
      "  troupe serve models/demo        # then, elsewhere:\n"
      "  troupe generate \"Once upon a time\"\n"
      "  troupe stats --watch\n"
      "troupe COMMAND --help says more.\n"
      "Exit status: 0 done, 1 failed, 2 wrong command line, 130 interrupted.");
  const std::vector<Command> commands = {
      AddServe(app),     AddGenerate(app), AddChat(app),    AddStats(app),
      AddExperts(app),   AddBench(app),    AddInspect(app), AddQuantize(app),
      AddMakeModel(app), AddKeys(app),     AddCerts(app)};
  const std::string unknown = UnknownCommand(argc, argv, commands);
  if (!unknown.empty()) {
    std::vector<std::string> names;
    for (const Command& command : commands) {
      names.push_back(command.app->get_name());
    }
    const std::string near = DidYouMean(unknown, names);
    std::fprintf(stderr, "troupe: there is no command \"%s\"%s\n",
                 unknown.c_str(),
                 near.empty() ? "; troupe --help lists them"
                              : ("; did you mean \"" + near + "\"?").c_str());
    return kExitUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  InitLogging("troupe", "warn");
  RouteGrpcLog();
  for (const Command& command : commands) {
    if (command.app->parsed()) return command.run();
  }
  return kExitUsage;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) { return troupe::Main(argc, argv); }
