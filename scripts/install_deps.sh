#!/usr/bin/env bash
# Installs what building Troupe needs, on Debian 12. Does nothing when all is
# there.
set -euo pipefail

packages=(
  # tools
  build-essential cmake ninja-build ccache pkg-config
  protobuf-compiler protobuf-compiler-grpc
  # libraries
  libabsl-dev libgrpc++-dev libprotobuf-dev libhwy-dev libspdlog-dev
  libcli11-dev nlohmann-json3-dev libxxhash-dev
  libboost1.81-dev # Asio and Beast: HTTP
  prometheus-cpp-dev # the text format of metrics
  libssl-dev       # TLS, SHA-256
  libpcre2-dev     # regular expressions of tokenizer.json
  libutf8proc-dev  # Unicode normalization forms
  # tests
  libgtest-dev libgmock-dev openssl python3 python3-venv
)

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "all packages are installed"
  exit 0
fi

echo "installing: ${missing[*]}"
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q \
  --no-install-recommends "${missing[@]}"
