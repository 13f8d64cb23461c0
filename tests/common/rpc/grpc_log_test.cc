#include "common/rpc/grpc_log.h"

#include "gtest/gtest.h"

namespace troupe {
namespace {

TEST(ExplainHandshakeTest, SaysWhatItMeans) {
  const std::string start =
      "Handshake failed with fatal error SSL_ERROR_SSL: error:0A0000C7:SSL "
      "routines::";
  EXPECT_EQ(ExplainHandshake(start + "peer did not return a certificate."),
            "the client shows no certificate");
  EXPECT_EQ(ExplainHandshake(start + "wrong version number."),
            "the other side does not speak TLS");
  EXPECT_EQ(ExplainHandshake(start + "something new."),
            start + "something new.");
  EXPECT_EQ(ExplainHandshake("Some other line: wrong version number"), "");
}

}  // namespace
}  // namespace troupe
