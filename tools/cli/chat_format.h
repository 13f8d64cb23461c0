// How a conversation is written down for a model without a chat template: pure
// functions.
#ifndef TROUPE_TOOLS_CLI_CHAT_FORMAT_H_
#define TROUPE_TOOLS_CLI_CHAT_FORMAT_H_

#include <string>
#include <vector>

#include "protos/gateway.pb.h"

namespace troupe {

v1::ChatMessage NewMessage(const std::string& role, const std::string& content);

// The contents one after the other, what a user says on a line of its own: the
// model simply goes on.
std::string PlainChat(const std::vector<v1::ChatMessage>& messages);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_CHAT_FORMAT_H_
