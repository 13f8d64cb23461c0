#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/safetensors_writer.h"
#include "tests/fakes/temp_dir.h"

namespace {

// Bytes that this thread holds through operator new, and the most so far.
thread_local int64_t allocated_now = 0;
thread_local int64_t allocated_peak = 0;

}  // namespace

#ifndef __SANITIZE_ADDRESS__
// Counts what is allocated; the size stands before the block.
void* operator new(size_t size) {
  constexpr size_t kHead = alignof(std::max_align_t);
  char* block = static_cast<char*>(std::malloc(size + kHead));
  if (block == nullptr) throw std::bad_alloc();
  *reinterpret_cast<size_t*>(block) = size;
  allocated_now += static_cast<int64_t>(size);
  allocated_peak = std::max(allocated_peak, allocated_now);
  return block + kHead;
}

void operator delete(void* pointer) noexcept {
  if (pointer == nullptr) return;
  char* block = static_cast<char*>(pointer) - alignof(std::max_align_t);
  allocated_now -= static_cast<int64_t>(*reinterpret_cast<size_t*>(block));
  std::free(block);
}

void operator delete(void* pointer, size_t) noexcept {
  operator delete(pointer);
}
#endif

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string WithLength(uint64_t length, const std::string& rest) {
  std::string file;
  for (int i = 0; i < 8; ++i) {
    file.push_back(static_cast<char>(length >> (8 * i)));
  }
  return file + rest;
}

std::string FileOf(const std::string& header, size_t data_bytes) {
  return WithLength(header.size(), header + std::string(data_bytes, '\7'));
}

class SafetensorsTest : public ::testing::Test {
 protected:
  absl::StatusOr<SafetensorsFile> OpenBytes(const std::string& bytes) {
    WriteFile(path_, bytes);
    return SafetensorsFile::Open(path_);
  }

  TempDir dir_;
  std::string path_ = dir_.File("x.safetensors");
};

TEST_F(SafetensorsTest, ReadsHeader) {
  // Not in the order of the bytes, a scalar, an empty tensor, padding.
  const std::string header =
      R"({"__metadata__":{"format":"pt","":"é"},)"
      R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},)"
      R"("a":{"shape":[],"data_offsets":[0,8],"dtype":"I64"},)"
      R"("none":{"dtype":"F32","shape":[4,0],"data_offsets":[8,8]},)"
      R"("\u00e9":{"dtype":"U8","shape":[1],"data_offsets":[20,21]}}   )";
  absl::StatusOr<SafetensorsFile> file = OpenBytes(FileOf(header, 21));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 4u);
  EXPECT_EQ(file->tensors()[0].name, "a");
  EXPECT_THAT(file->tensors()[0].shape, IsEmpty());
  EXPECT_EQ(file->tensors()[0].type, SafetensorsType::kI64);
  EXPECT_EQ(file->tensors()[1].name, "none");
  EXPECT_EQ(file->tensors()[1].num_bytes, 0u);
  const TensorInfo* b = file->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b, &file->tensors()[2]);
  EXPECT_THAT(b->shape, ElementsAre(2, 3));
  EXPECT_EQ(b->offset, 8 + header.size() + 8);
  EXPECT_EQ(b->num_bytes, 12u);
  EXPECT_NE(file->Find("é"), nullptr);
  EXPECT_EQ(file->Find("c"), nullptr);
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->metadata().size(), 2u);
  EXPECT_EQ(file->Read(*b).value(), std::string(12, '\7'));
}

TEST_F(SafetensorsTest, ReadsAFileWithoutTensors) {
  absl::StatusOr<SafetensorsFile> file = OpenBytes(FileOf("{}", 0));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->tensors(), IsEmpty());
}

TEST_F(SafetensorsTest, EveryTypeHasItsSize) {
  const std::pair<const char*, size_t> types[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  for (const auto& [name, size] : types) {
    const std::string num_bytes = std::to_string(3 * size);
    const std::string header = std::string(R"({"t":{"dtype":")") + name +
                               R"(","shape":[3],"data_offsets":[0,)" +
                               num_bytes + "]}}";
    absl::StatusOr<SafetensorsFile> file = OpenBytes(FileOf(header, 3 * size));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(Name(file->tensors()[0].type), std::string(name));
    EXPECT_EQ(SizeOf(file->tensors()[0].type), size);
  }
}

TEST_F(SafetensorsTest, WriterAndReaderAgree) {
  std::vector<TensorInfo> tensors(3);
  tensors[0].name = "matrix";
  tensors[0].shape = {3, 5};
  tensors[1].name = "quote\" and \\ and é";
  tensors[1].type = SafetensorsType::kBF16;
  tensors[1].shape = {7};
  tensors[2].name = "scalar";
  tensors[2].type = SafetensorsType::kBool;
  std::string bytes(60 + 14 + 1, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i);

  absl::StatusOr<SafetensorsWriter> writer =
      SafetensorsWriter::Create(path_, tensors);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Append(bytes.data(), 10).ok());
  EXPECT_EQ(writer->Finish().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(access(path_.c_str(), F_OK), 0) << "visible before it is complete";
  ASSERT_TRUE(writer->Append(bytes.data() + 10, bytes.size() - 10).ok());
  EXPECT_FALSE(writer->Append("x", 1).ok());
  ASSERT_TRUE(writer->Finish().ok());

  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  std::string back;
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(file->tensors()[i].name, tensors[i].name);
    EXPECT_EQ(file->tensors()[i].type, tensors[i].type);
    EXPECT_EQ(file->tensors()[i].shape, tensors[i].shape);
    back += file->Read(file->tensors()[i]).value();
  }
  EXPECT_EQ(back, bytes);
  EXPECT_EQ(file->tensors()[0].offset % 64, 0u);
}

TEST_F(SafetensorsTest, AbandonedWriterLeavesNothing) {
  {
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(path_, {});
    ASSERT_TRUE(writer.ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

struct BrokenFile {
  const char* what;
  std::string bytes;
  const char* message;  // a part of it
};

std::vector<BrokenFile> BrokenFiles() {
  // A tensor "t" of two floats with something exchanged.
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return "\"t\":{\"dtype\":" + dtype + ",\"shape\":" + shape +
           ",\"data_offsets\":" + offsets + "}";
  };
  const auto one = [&](const std::string& dtype, const std::string& shape,
                       const std::string& offsets) {
    return FileOf("{" + entry(dtype, shape, offsets) + "}", 8);
  };
  const std::string t = entry("\"F32\"", "[2]", "[0,8]");
  const std::string good = FileOf("{" + t + "}", 8);
  const auto two = [&](const std::string& offsets) {
    return "{" + t + R"(,"u":{"dtype":"F32","shape":[2],"data_offsets":)" +
           offsets + "}}";
  };
  const std::string max = "18446744073709551615";
  return {
      {"empty file", "", "shorter"},
      {"seven bytes", good.substr(0, 7), "shorter"},
      {"length alone", good.substr(0, 8), "truncated"},
      {"cut in the header", good.substr(0, 30), "truncated"},
      {"cut in the data", good.substr(0, good.size() - 1), "tensor t"},
      {"data missing", good.substr(0, good.size() - 8), "tensor t"},
      {"data added", good + "x", "the data at 9"},
      {"header length 0", FileOf("", 8), "does not start with {"},
      {"header length overflows", WithLength(~uint64_t{0}, good.substr(8)),
       "at most 100000000"},
      {"header length overflows by 8",
       WithLength(~uint64_t{0} - 7, good.substr(8)), "at most 100000000"},
      {"header length negative", WithLength(uint64_t{1} << 63, good.substr(8)),
       "at most 100000000"},
      {"header length beyond file", WithLength(good.size(), good.substr(8)),
       "truncated"},
      {"header length one short",
       WithLength(good.size() - 8 - 8 - 1, good.substr(8)), "byte"},
      {"space first", FileOf(" {" + t + "}", 8), "does not start with {"},
      {"byte order mark", FileOf("\xef\xbb\xbf{" + t + "}", 8),
       "does not start with {"},
      {"array", FileOf("[]", 0), "does not start with {"},
      {"not closed", FileOf("{" + t, 8), "invalid JSON"},
      {"two values", FileOf("{" + t + "}{}", 8), "invalid JSON"},
      {"zero padding", FileOf("{" + t + "}" + std::string(4, '\0'), 8),
       "zero byte at"},
      {"invalid UTF-8", FileOf("{\"\xff\":{}}", 0), "UTF-8"},
      {"surrogate", FileOf("{\"\\ud800\":{}}", 0), "invalid JSON"},
      {"overlong UTF-8", FileOf("{\"\xc0\x80\":{}}", 0), "UTF-8"},
      {"duplicate tensor", FileOf("{" + t + "," + t + "}", 8),
       "tensor t: duplicate key"},
      {"duplicate dtype",
       FileOf(R"({"t":{"dtype":"F32","dtype":"F32","shape":[2],)"
              R"("data_offsets":[0,8]}})",
              8),
       "tensor t: duplicate or unknown key"},
      {"duplicate metadata",
       FileOf(R"({"__metadata__":{},"__metadata__":{}})", 0), "__metadata__"},
      {"duplicate metadata key",
       FileOf(R"({"__metadata__":{"a":"1","a":"1"}})", 0), "__metadata__"},
      {"metadata number", FileOf(R"({"__metadata__":{"a":1}})", 0),
       "unexpected number"},
      {"metadata text", FileOf(R"({"__metadata__":"a"})", 0),
       "unexpected string"},
      {"metadata nested", FileOf(R"({"__metadata__":{"a":{}}})", 0),
       "unexpected object"},
      {"unknown key",
       FileOf(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],)"
              R"("more":1}})",
              8),
       "tensor t: duplicate or unknown key"},
      {"no shape", FileOf(R"({"t":{"dtype":"F32","data_offsets":[0,8]}})", 8),
       "tensor t: needs"},
      {"no dtype", FileOf(R"({"t":{"shape":[2],"data_offsets":[0,8]}})", 8),
       "tensor t: needs"},
      {"no offsets", FileOf(R"({"t":{"dtype":"F32","shape":[2]}})", 8),
       "tensor t: needs"},
      {"empty entry", FileOf(R"({"t":{}})", 0), "tensor t: needs"},
      {"entry is null", FileOf(R"({"t":null})", 0),
       "tensor t: unexpected null"},
      {"entry is a list", FileOf(R"({"t":[]})", 0),
       "tensor t: unexpected array"},
      {"unknown dtype", one("\"F128\"", "[2]", "[0,8]"),
       "tensor t: unknown dtype \"F128\""},
      {"small dtype", one("\"f32\"", "[2]", "[0,8]"), "tensor t: unknown"},
      {"sub-byte dtype", one("\"F4\"", "[16]", "[0,8]"), "tensor t: unknown"},
      {"dtype is a number", one("32", "[2]", "[0,8]"), "tensor t: unexpected"},
      {"wrong dtype for the bytes", one("\"F64\"", "[2]", "[0,8]"),
       "tensor t: shape and dtype make 16 bytes"},
      {"wrong shape for the bytes", one("\"F32\"", "[3]", "[0,8]"),
       "tensor t: shape and dtype make 12 bytes"},
      {"scalar with eight bytes", one("\"F32\"", "[]", "[0,8]"),
       "tensor t: shape and dtype make 4 bytes"},
      {"negative dimension", one("\"F32\"", "[-2]", "[0,8]"),
       "tensor t: unexpected negative"},
      {"fraction", one("\"F32\"", "[2.0]", "[0,8]"), "tensor t: unexpected"},
      {"text", one("\"F32\"", "[\"2\"]", "[0,8]"), "tensor t: unexpected"},
      {"nested shape", one("\"F32\"", "[[2]]", "[0,8]"),
       "tensor t: unexpected array"},
      {"many dimensions",
       one("\"F32\"", "[2,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,8]"),
       "tensor t: more than 16"},
      // 2^62 * 4 + 8 wraps to 8.
      {"product wraps", one("\"F32\"", "[4611686018427387906]", "[0,8]"),
       "tensor t: shape overflows"},
      {"product of two wraps",
       one("\"F32\"", "[4294967296,4294967297]", "[0,8]"),
       "tensor t: shape overflows"},
      {"dimension of 64 bits", one("\"F32\"", "[" + max + "]", "[0,8]"),
       "tensor t: shape overflows"},
      {"dimension beyond 64 bits", one("\"F32\"", "[" + max + "0]", "[0,8]"),
       "tensor t: unexpected"},
      {"offset negative", one("\"F32\"", "[2]", "[-8,0]"),
       "tensor t: unexpected negative"},
      {"end before begin", one("\"F32\"", "[2]", "[8,0]"),
       "tensor t: data_offsets [8, 0]"},
      {"end beyond the data", one("\"F32\"", "[2]", "[1,9]"),
       "tensor t: data_offsets [1, 9]"},
      {"end of 64 bits", one("\"F32\"", "[2]", "[0," + max + "]"),
       "tensor t: data_offsets"},
      {"both far beyond",
       one("\"F32\"", "[2]", "[18446744073709551607," + max + "]"),
       "tensor t: data_offsets"},
      {"one offset", one("\"F32\"", "[2]", "[0]"),
       "tensor t: data_offsets must hold two"},
      {"three offsets", one("\"F32\"", "[2]", "[0,8,8]"),
       "tensor t: data_offsets must hold two"},
      {"hole at the start", one("\"F32\"", "[1]", "[4,8]"),
       "tensor t: starts at 4 after a hole that begins at 0"},
      {"hole at the end", one("\"F32\"", "[1]", "[0,4]"),
       "the tensors end at 4, the data at 8"},
      {"hole between", FileOf(two("[9,17]"), 17),
       "tensor u: starts at 9 after a hole that begins at 8"},
      {"overlap", FileOf(two("[4,12]"), 12),
       "tensor u: starts at 4 and overlaps"},
      {"same bytes twice", FileOf(two("[0,8]"), 8),
       "tensor u: starts at 0 and overlaps"},
      {"deep nesting", FileOf("{\"t\":" + std::string(1000000, '['), 0),
       "tensor t: unexpected array"},
      {"deep objects",
       FileOf("{\"t\":{\"shape\":" + std::string(100000, '{'), 0),
       "tensor t: unexpected object"},
  };
}

TEST_F(SafetensorsTest, RefusesBrokenFiles) {
  for (const BrokenFile& test : BrokenFiles()) {
    SCOPED_TRACE(test.what);
    const absl::Status status = OpenBytes(test.bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.message));
  }
}

TEST_F(SafetensorsTest, MessagesAreShortAndPrintable) {
  const std::string name(100000, 'n');
  const absl::Status status =
      OpenBytes(FileOf("{\"\\u001b[31m\\n" + name + "\":{}}", 0)).status();
  EXPECT_FALSE(status.ok());
  EXPECT_LT(status.message().size(), 1000u);
  for (const char c : status.message()) {
    EXPECT_TRUE(c >= ' ' && c <= '~') << static_cast<int>(c);
  }
}

TEST_F(SafetensorsTest, RefusesWhatIsNoFile) {
  EXPECT_EQ(SafetensorsFile::Open(dir_.File("absent")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(dir_.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  EXPECT_EQ(SafetensorsFile::Open(path_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SafetensorsTest, HugeHeaderIsRefusedBeforeItIsRead) {
  WriteFile(path_, WithLength(100'000'001, "{"));
  ASSERT_EQ(truncate(path_.c_str(), int64_t{1} << 32), 0);  // sparse
  allocated_peak = allocated_now;
  const int64_t before = allocated_now;
  EXPECT_FALSE(SafetensorsFile::Open(path_).ok());
  EXPECT_LT(allocated_peak - before, 1 << 20);
}

TEST_F(SafetensorsTest, NoticesAWriteAfterOpen) {
  const std::string bytes = FileOf("{}", 0);
  absl::StatusOr<SafetensorsFile> file = OpenBytes(bytes);
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->CheckUnchanged().ok());
  // Same size, later time.
  const timespec times[2] = {{2000000000, 0}, {2000000000, 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, path_.c_str(), times, 0), 0);
  EXPECT_EQ(file->CheckUnchanged().code(),
            absl::StatusCode::kFailedPrecondition);
}

// What holds for every file that is accepted, however it came about.
void CheckAccepted(const SafetensorsFile& file, uint64_t file_bytes) {
  uint64_t end = 0;
  for (const TensorInfo& tensor : file.tensors()) {
    unsigned __int128 num_bytes = SizeOf(tensor.type);
    for (const size_t dimension : tensor.shape) num_bytes *= dimension;
    ASSERT_TRUE(num_bytes == tensor.num_bytes);
    ASSERT_LE(tensor.offset, file_bytes);
    ASSERT_LE(tensor.num_bytes, file_bytes - tensor.offset);
    ASSERT_GE(tensor.offset, end) << "overlap";
    end = tensor.offset + tensor.num_bytes;
    ASSERT_EQ(file.Find(tensor.name), &tensor);
  }
  if (!file.tensors().empty()) {
    ASSERT_EQ(end, file_bytes);
  }
}

class SafetensorsMutationTest : public SafetensorsTest {
 protected:
  // A header of 20 tensors.
  static std::string Seed() {
    std::vector<TensorInfo> tensors(20);
    size_t num_bytes = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      tensors[i].name =
          "model.layers." + std::to_string(i) + ".mlp.gate.weight";
      tensors[i].type =
          i % 2 == 0 ? SafetensorsType::kF32 : SafetensorsType::kBF16;
      tensors[i].shape = {i % 3 + 1, 5};
      num_bytes += (i % 3 + 1) * 5 * SizeOf(tensors[i].type);
    }
    return SafetensorsHeader(tensors) + std::string(num_bytes, '\1');
  }

  // Neither crashes nor accepts nonsense nor allocates much. Returns whether
  // the file was accepted.
  bool Try(const std::string& bytes) {
    WriteFile(path_, bytes);
    const int64_t before = allocated_now;
    allocated_peak = before;
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path_);
    EXPECT_LT(allocated_peak - before, 1 << 20);
    if (file.ok()) {
      CheckAccepted(*file, bytes.size());
      return true;
    }
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(path_));
    return false;
  }
};

TEST_F(SafetensorsMutationTest, EveryByteOfTheHeader) {
  const std::string seed = Seed();
  ASSERT_TRUE(Try(seed));
  const size_t header_end = seed.rfind('}') + 1;
  size_t accepted = 0;
  for (size_t i = 0; i < header_end; ++i) {
    for (const char flip : {'\x01', '\x80', '\x02'}) {
      std::string bytes = seed;
      bytes[i] = static_cast<char>(bytes[i] ^ flip);
      accepted += Try(bytes);
      if (HasFailure()) FAIL() << "byte " << i;
    }
  }
  // Letters of names may change; little else.
  EXPECT_LT(accepted, header_end * 2);
  EXPECT_GT(accepted, 0u);
}

TEST_F(SafetensorsMutationTest, EveryLength) {
  const std::string seed = Seed();
  for (size_t size = 0; size < seed.size(); ++size) {
    EXPECT_FALSE(Try(seed.substr(0, size))) << size;
  }
}

TEST_F(SafetensorsMutationTest, TenThousandRandomEdits) {
  const std::string seed = Seed();
  const std::string numbers[] = {"0",
                                 "-1",
                                 "1e3",
                                 "4294967296",
                                 "9223372036854775807",
                                 "18446744073709551615",
                                 "18446744073709551616",
                                 "[]",
                                 "null",
                                 "\"F32\"",
                                 "{"};
  std::mt19937_64 random(42);
  const auto below = [&](size_t n) { return random() % n; };
  for (int round = 0; round < 10000; ++round) {
    std::string bytes = seed;
    const size_t num_edits = 1 + below(4);
    for (size_t edit = 0; edit < num_edits; ++edit) {
      const size_t at = below(std::max<size_t>(bytes.size(), 1));
      switch (below(6)) {
        case 0:
          if (at < bytes.size()) bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.insert(at, 1, static_cast<char>(random()));
          break;
        case 2:
          bytes.erase(at, 1 + below(8));
          break;
        case 3:
          bytes.resize(at);
          break;
        case 4: {  // another number in place of one
          const size_t digit = bytes.find_first_of("0123456789", at);
          if (digit == std::string::npos) break;
          const size_t end = bytes.find_first_not_of("0123456789", digit);
          bytes.replace(digit, end == std::string::npos ? end : end - digit,
                        numbers[below(std::size(numbers))]);
          break;
        }
        case 5: {  // a piece of the file in another place
          const size_t from = below(std::max<size_t>(bytes.size(), 1));
          bytes.insert(at, bytes.substr(from, below(200)));
          break;
        }
      }
    }
    // Half of them with a length that fits, so that the header is parsed.
    if (round % 2 == 0 && bytes.size() > 8) {
      const size_t brace = bytes.rfind('}');
      const uint64_t length = brace == std::string::npos || brace < 8
                                  ? bytes.size() - 8
                                  : brace + 1 - 8;
      bytes = WithLength(length, bytes.substr(8));
    }
    Try(bytes);
    if (HasFailure()) FAIL() << "round " << round;
  }
}

}  // namespace
}  // namespace troupe
