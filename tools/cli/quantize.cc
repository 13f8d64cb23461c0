#include "tools/cli/quantize.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/dequantize.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "model/checkpoint.h"
#include "model/digest.h"
#include "model/quantizer.h"
#include "model/safetensors_writer.h"
#include "model/strict_json.h"
#include "nlohmann/json.hpp"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Source bytes of rows that are worked on at once.
constexpr size_t kBlockBytes = size_t{4} << 20;
constexpr size_t kTasksPerThread = 4;
constexpr size_t kMaxConfigBytes = size_t{4} << 20;
constexpr uint64_t kMaxCopiedBytes = uint64_t{64} << 20;
// In the metadata of every file, next to what was asked for.
constexpr char kRequestKey[] = "troupe.quantization";
constexpr char kSourceKey[] = "troupe.source";

// Keeps a second process out of the folder as long as it lives.
class FolderLock {
 public:
  static absl::StatusOr<FolderLock> Take(const std::string& dir) {
    FolderLock lock;
    lock.fd_ = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock.fd_ < 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", dir));
    }
    if (flock(lock.fd_, LOCK_EX | LOCK_NB) != 0) {
      return absl::AlreadyExistsError(
          absl::StrCat(dir, ": another process is writing to it"));
    }
    return lock;
  }
  FolderLock(FolderLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ~FolderLock() {
    if (fd_ >= 0) close(fd_);
  }

 private:
  FolderLock() = default;
  int fd_ = -1;
};

// Names, sizes and times of the source's files, and the model's fingerprint:
// what tells one source from another without reading all of it.
absl::StatusOr<std::string> SourceDigest(const Checkpoint& checkpoint) {
  std::vector<std::string> lines;
  std::error_code error;
  for (const auto& entry :
       fs::directory_iterator(checkpoint.model_dir(), error)) {
    if (entry.path().extension() != ".safetensors") continue;
    struct stat file;
    if (stat(entry.path().c_str(), &file) != 0) {
      return absl::ErrnoToStatus(
          errno, absl::StrCat("cannot stat ", entry.path().string()));
    }
    lines.push_back(absl::StrCat(entry.path().filename().string(), " ",
                                 file.st_size, " ", file.st_mtim.tv_sec, ".",
                                 file.st_mtim.tv_nsec, "\n"));
  }
  if (error) {
    return absl::UnavailableError(absl::StrCat(
        "cannot list ", checkpoint.model_dir(), ": ", error.message()));
  }
  std::sort(lines.begin(), lines.end());
  lines.push_back(checkpoint.fingerprint());
  Digest digest;
  for (const std::string& line : lines) {
    digest.Update(line.data(), line.size());
  }
  return digest.Hex();
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  const std::string temporary = absl::StrCat(path, ".part");
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (!file.good() || std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    return absl::UnavailableError(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

bool IsWeights(const fs::path& path) {
  for (const char* extension : {".safetensors", ".part", ".bin", ".pt", ".pth",
                                ".gguf", ".onnx", ".h5", ".msgpack"}) {
    if (path.extension() == extension) return true;
  }
  return false;
}

// Tokenizer, generation config, licence and whatever else is small.
absl::Status CopyOtherFiles(const std::string& from, const std::string& to) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(from, error)) {
    const fs::path& path = entry.path();
    const std::string name = path.filename().string();
    if (!entry.is_regular_file() || name[0] == '.' || IsWeights(path) ||
        name == "config.json" || absl::EndsWith(name, ".index.json") ||
        entry.file_size() > kMaxCopiedBytes) {
      continue;
    }
    fs::copy_file(path, fs::path(to) / name,
                  fs::copy_options::overwrite_existing, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("cannot copy ", path.string(), ": ", error.message()));
    }
  }
  return absl::OkStatus();
}

// A row of the source in its new format, and what that costs.
class RowQuantizer {
 public:
  RowQuantizer(const StoredMatrix& source, const PlannedTensor& plan)
      : source_(source), plan_(plan), values_(source.k), rounded_(source.k) {}

  absl::Status Run(size_t row, uint8_t* numbers, uint16_t* scales,
                   uint8_t* zeros) {
    DequantizeRow(source_, row, values_.data());
    const absl::Status status =
        QuantizeRow(values_.data(), source_.k, *plan_.format, plan_.group_size,
                    numbers, scales, zeros);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("row ", row, ", ", status.message()));
    }
    const StoredMatrix result = {.format = *plan_.format,
                                 .n = 1,
                                 .k = source_.k,
                                 .group_size = plan_.group_size,
                                 .numbers = numbers,
                                 .scales = scales,
                                 .zeros = zeros};
    Compare(result, 0);
    return absl::OkStatus();
  }

  // Adds the error of row `row` of the result, which is a row of the source.
  void CompareRow(const StoredMatrix& result, size_t row) {
    DequantizeRow(source_, row, values_.data());
    Compare(result, row);
  }

  double squared_error = 0;
  double squared_sum = 0;

 private:
  void Compare(const StoredMatrix& result, size_t row) {
    DequantizeRow(result, row, rounded_.data());
    for (size_t i = 0; i < source_.k; ++i) {
      const double difference = values_[i] - rounded_[i];
      squared_error += difference * difference;
      squared_sum += static_cast<double>(values_[i]) * values_[i];
    }
  }

  const StoredMatrix& source_;
  const PlannedTensor& plan_;
  std::vector<float> values_, rounded_;
};

// One run of Quantize.
class Run {
 public:
  Run(const QuantizeOptions& options, const Checkpoint& checkpoint,
      std::vector<PlannedShard> shards, std::string source_digest)
      : options_(options),
        checkpoint_(checkpoint),
        shards_(std::move(shards)),
        metadata_{{kRequestKey, ToJson(options.request).dump()},
                  {kSourceKey, std::move(source_digest)}},
        pool_(options.num_threads == 0 ? AvailableThreads()
                                       : options.num_threads) {}

  absl::StatusOr<QuantizeReport> Execute() {
    ABSL_RETURN_IF_ERROR(CheckFolder());
    report_.num_shards = shards_.size();
    for (const PlannedShard& shard : shards_) {
      for (const PlannedTensor& tensor : shard.tensors) {
        total_bytes_ += tensor.source_bytes;
      }
    }
    for (size_t i = 0; i < shards_.size(); ++i) {
      ABSL_RETURN_IF_ERROR(found_[i] ? MeasureShard(shards_[i])
                                     : WriteShard(shards_[i]));
    }
    ABSL_RETURN_IF_ERROR(WriteRest());
    return report_;
  }

 private:
  std::string PathOf(const std::string& name) const {
    return absl::StrCat(options_.output_dir, "/", name);
  }

  absl::Status Foreign(const std::string& name, const std::string& why) const {
    return absl::AlreadyExistsError(absl::StrCat(
        PathOf(name), ": ", why, "; choose another folder, or empty this one"));
  }

  // Finds the files that are complete; everything else that is in the way is
  // an error.
  absl::Status CheckFolder() {
    std::error_code error;
    std::set<std::string> planned;
    for (const PlannedShard& shard : shards_) planned.insert(shard.name);
    for (const auto& entry :
         fs::directory_iterator(options_.output_dir, error)) {
      const std::string name = entry.path().filename().string();
      if (entry.path().extension() == ".safetensors" &&
          planned.count(name) == 0) {
        return Foreign(name, "is no file that this command would write");
      }
    }
    if (fs::exists(PathOf("config.json"), error)) {
      ABSL_ASSIGN_OR_RETURN(
          const nlohmann::json config,
          ReadJsonFile(PathOf("config.json"), kMaxConfigBytes));
      const nlohmann::json asked = ToJson(options_.request);
      if (!config.is_object() || !config.contains("quantization_config") ||
          config["quantization_config"] != asked) {
        return Foreign("config.json", "was made with other options");
      }
    }
    uint64_t needed_bytes = 0;
    for (const PlannedShard& shard : shards_) {
      found_.push_back(false);
      if (!fs::exists(PathOf(shard.name), error)) {
        needed_bytes += shard.num_bytes;
        continue;
      }
      ABSL_RETURN_IF_ERROR(CheckFound(shard));
      found_.back() = true;
      ++report_.num_shards_found;
    }
    const auto space = fs::space(options_.output_dir, error);
    if (!error && space.available < needed_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(options_.output_dir, ": ", needed_bytes,
                       " bytes needed, ", space.available, " available"));
    }
    return absl::OkStatus();
  }

  // The file of an earlier run has the same request, source and tensors.
  absl::Status CheckFound(const PlannedShard& shard) const {
    ABSL_ASSIGN_OR_RETURN(const SafetensorsFile file,
                          SafetensorsFile::Open(PathOf(shard.name)));
    for (const auto& [key, value] : metadata_) {
      const auto it = file.metadata().find(key);
      if (it != file.metadata().end() && it->second == value) continue;
      return Foreign(shard.name, key == kSourceKey
                                     ? "was made from another source"
                                     : "was made with other options");
    }
    const std::vector<TensorInfo> infos = shard.Infos();
    bool same = file.tensors().size() == infos.size();
    for (const TensorInfo& info : infos) {
      const TensorInfo* other = file.Find(info.name);
      same = same && other != nullptr && other->type == info.type &&
             other->shape == info.shape;
    }
    if (!same) return Foreign(shard.name, "holds other tensors");
    return absl::OkStatus();
  }

  absl::Status WriteShard(const PlannedShard& shard) {
    ABSL_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                          SafetensorsWriter::Create(PathOf(shard.name),
                                                    shard.Infos(), metadata_));
    for (const PlannedTensor& tensor : shard.tensors) {
      ABSL_ASSIGN_OR_RETURN(const MappedTensor source,
                            checkpoint_.Map(tensor.spec.name));
      Count(tensor);
      ABSL_RETURN_IF_ERROR(tensor.format.has_value()
                               ? WriteQuantized(tensor, source, writer)
                               : WriteKept(source, writer));
    }
    return writer.Finish();
  }

  void Count(const PlannedTensor& tensor) {
    QuantizedClass& part = ClassOf(tensor);
    part.num_weights += NumElements(tensor.spec);
    part.bytes_before += tensor.source_bytes;
    part.bytes_after += tensor.num_bytes;
  }

  QuantizedClass& ClassOf(const PlannedTensor& tensor) {
    return report_.classes[static_cast<size_t>(tensor.spec.tensor_class)];
  }

  // Calls work(begin, end) for blocks of rows, in order, and reports progress.
  template <typename Work>
  absl::Status ForEachBlock(const MappedTensor& source, const Work& work) {
    const size_t row_bytes = std::max<size_t>(
        1, source.num_bytes() / std::max<size_t>(1, source.rows()));
    const size_t step = std::max<size_t>(1, kBlockBytes / row_bytes);
    for (size_t begin = 0; begin < source.rows(); begin += step) {
      const size_t end = std::min(begin + step, source.rows());
      ABSL_RETURN_IF_ERROR(work(begin, end));
      source.DropPages(begin, end);
      done_bytes_ += (end - begin) * row_bytes;
      if (options_.progress) options_.progress(done_bytes_, total_bytes_);
    }
    return absl::OkStatus();
  }

  absl::Status WriteKept(const MappedTensor& source,
                         SafetensorsWriter& writer) {
    const size_t row_bytes = source.num_bytes() / source.rows();
    return ForEachBlock(source, [&](size_t begin, size_t end) {
      return writer.Append(
          static_cast<const uint8_t*>(source.data()) + begin * row_bytes,
          (end - begin) * row_bytes);
    });
  }

  // Calls function(quantizer, row) for the rows [begin, end), dealt out to the
  // threads in pieces whose sums are added in order; the error of the first
  // row that has one.
  template <typename Function>
  absl::Status ForEachRow(const PlannedTensor& tensor,
                          const StoredMatrix& source, size_t begin, size_t end,
                          const Function& function) {
    const size_t num_tasks =
        std::min(end - begin, pool_.num_threads() * kTasksPerThread);
    std::vector<RowQuantizer> quantizers(num_tasks,
                                         RowQuantizer(source, tensor));
    std::vector<absl::Status> statuses(num_tasks);
    pool_.ParallelFor(num_tasks, [&](size_t task, size_t) {
      const size_t first = begin + (end - begin) * task / num_tasks;
      const size_t last = begin + (end - begin) * (task + 1) / num_tasks;
      for (size_t row = first; row < last && statuses[task].ok(); ++row) {
        statuses[task] = function(quantizers[task], row);
      }
    });
    for (const absl::Status& status : statuses) {
      if (status.ok()) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(checkpoint_.model_dir(), ": tensor ", tensor.spec.name,
                       ": ", status.message()));
    }
    for (const RowQuantizer& quantizer : quantizers) {
      ClassOf(tensor).squared_error += quantizer.squared_error;
      ClassOf(tensor).squared_sum += quantizer.squared_sum;
    }
    return absl::OkStatus();
  }

  absl::Status WriteQuantized(const PlannedTensor& tensor,
                              const MappedTensor& source,
                              SafetensorsWriter& writer) {
    const StoredMatrix& matrix = source.matrix();
    const size_t num_groups = matrix.k / tensor.group_size;
    const size_t row_bytes = NumberBytes(*tensor.format, matrix.k);
    const bool with_zero = tensor.format == WeightFormat::kInt4Zero;
    std::vector<uint8_t> numbers;
    std::vector<uint16_t> scales(matrix.n * num_groups);
    std::vector<uint8_t> zeros(with_zero ? matrix.n * num_groups : 0);
    const auto write = [&](size_t begin, size_t end) -> absl::Status {
      numbers.resize((end - begin) * row_bytes);
      const auto run = [&](RowQuantizer& quantizer, size_t row) {
        return quantizer.Run(
            row, numbers.data() + (row - begin) * row_bytes,
            scales.data() + row * num_groups,
            with_zero ? zeros.data() + row * num_groups : nullptr);
      };
      ABSL_RETURN_IF_ERROR(ForEachRow(tensor, matrix, begin, end, run));
      return writer.Append(numbers.data(), numbers.size());
    };
    ABSL_RETURN_IF_ERROR(ForEachBlock(source, write));
    ABSL_RETURN_IF_ERROR(
        writer.Append(scales.data(), scales.size() * sizeof(uint16_t)));
    return writer.Append(zeros.data(), zeros.size());
  }

  // The report covers the files of earlier runs too.
  absl::Status MeasureShard(const PlannedShard& shard) {
    ABSL_ASSIGN_OR_RETURN(const SafetensorsFile file,
                          SafetensorsFile::Open(PathOf(shard.name)));
    for (const PlannedTensor& tensor : shard.tensors) {
      Count(tensor);
      if (!tensor.format.has_value()) {
        done_bytes_ += tensor.source_bytes;
        continue;
      }
      ABSL_ASSIGN_OR_RETURN(const MappedTensor source,
                            checkpoint_.Map(tensor.spec.name));
      std::array<MappedBytes, 3> parts;
      for (size_t i = 0; i < tensor.parts.size(); ++i) {
        ABSL_ASSIGN_OR_RETURN(
            parts[i], MappedBytes::Map(file, *file.Find(tensor.parts[i].name)));
      }
      const StoredMatrix result = {.format = *tensor.format,
                                   .n = source.rows(),
                                   .k = source.cols(),
                                   .group_size = tensor.group_size,
                                   .numbers = parts[0].data(),
                                   .scales = parts[1].data(),
                                   .zeros = parts[2].data()};
      const size_t row_bytes = NumberBytes(*tensor.format, source.cols());
      const auto compare = [&](RowQuantizer& quantizer, size_t row) {
        quantizer.CompareRow(result, row);
        return absl::OkStatus();
      };
      const auto measure = [&](size_t begin, size_t end) -> absl::Status {
        ABSL_RETURN_IF_ERROR(
            ForEachRow(tensor, source.matrix(), begin, end, compare));
        parts[0].DropPages(begin * row_bytes, end * row_bytes);
        return absl::OkStatus();
      };
      ABSL_RETURN_IF_ERROR(ForEachBlock(source, measure));
    }
    return absl::OkStatus();
  }

  absl::Status WriteRest() {
    if (shards_.size() > 1) {
      uint64_t num_bytes = 0;
      std::map<std::string, std::string> file_of;
      for (const PlannedShard& shard : shards_) {
        num_bytes += shard.num_bytes;
        for (const TensorInfo& info : shard.Infos()) {
          file_of[info.name] = shard.name;
        }
      }
      const nlohmann::json index = {{"metadata", {{"total_size", num_bytes}}},
                                    {"weight_map", file_of}};
      ABSL_RETURN_IF_ERROR(WriteText(PathOf("model.safetensors.index.json"),
                                     index.dump(1) + "\n"));
    }
    ABSL_RETURN_IF_ERROR(
        CopyOtherFiles(options_.model_dir, options_.output_dir));
    ABSL_ASSIGN_OR_RETURN(
        const std::string text,
        ReadSmallFile(options_.model_dir + "/config.json", kMaxConfigBytes));
    // Opening the checkpoint has checked it.
    ordered_json config = ordered_json::parse(text);
    config["quantization_config"] = ToJson(options_.request);
    return WriteText(PathOf("config.json"), config.dump(2) + "\n");
  }

  const QuantizeOptions& options_;
  const Checkpoint& checkpoint_;
  const std::vector<PlannedShard> shards_;
  const std::map<std::string, std::string> metadata_;
  ThreadPool pool_;
  std::vector<bool> found_;  // by shard: complete from an earlier run
  uint64_t done_bytes_ = 0;
  uint64_t total_bytes_ = 0;
  QuantizeReport report_;
};

}  // namespace

std::string QuantizeReport::ToText() const {
  std::string text =
      absl::StrFormat("  %-10s %12s %10s %10s %12s %12s\n", "", "weights",
                      "before", "after", "bits/weight", "rms error");
  QuantizedClass all;
  const auto row = [&](const char* name, const QuantizedClass& part) {
    absl::StrAppendFormat(&text, "  %-10s %12d %10s %10s %12.2f", name,
                          part.num_weights,
                          FormatBytes(static_cast<double>(part.bytes_before)),
                          FormatBytes(static_cast<double>(part.bytes_after)),
                          8.0 * static_cast<double>(part.bytes_after) /
                              static_cast<double>(part.num_weights));
    if (part.squared_sum > 0) {
      absl::StrAppendFormat(
          &text, " %10.3f %%",
          100 * std::sqrt(part.squared_error / part.squared_sum));
    }
    text += "\n";
  };
  for (const TensorClass tensor_class : kTensorClasses) {
    const QuantizedClass& part = classes[static_cast<size_t>(tensor_class)];
    if (part.num_weights == 0) continue;
    row(Name(tensor_class), part);
    all.num_weights += part.num_weights;
    all.bytes_before += part.bytes_before;
    all.bytes_after += part.bytes_after;
  }
  row("all", all);
  return text;
}

absl::StatusOr<QuantizeReport> Quantize(const QuantizeOptions& options) {
  if (std::find(std::begin(kGroupSizes), std::end(kGroupSizes),
                options.request.group_size) == std::end(kGroupSizes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--group-size ", options.request.group_size, ": must be 32 or 64"));
  }
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                        Checkpoint::Open(options.model_dir));
  ABSL_ASSIGN_OR_RETURN(
      std::vector<PlannedShard> shards,
      PlanQuantization(*checkpoint, options.request, options.max_shard_bytes));
  ABSL_ASSIGN_OR_RETURN(std::string source, SourceDigest(*checkpoint));
  std::error_code error;
  fs::create_directories(options.output_dir, error);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot make directory ", options.output_dir, ": ", error.message()));
  }
  if (fs::equivalent(options.model_dir, options.output_dir, error)) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.output_dir, ": is the source itself"));
  }
  ABSL_ASSIGN_OR_RETURN(const FolderLock lock,
                        FolderLock::Take(options.output_dir));
  return Run(options, *checkpoint, std::move(shards), std::move(source))
      .Execute();
}

}  // namespace troupe
