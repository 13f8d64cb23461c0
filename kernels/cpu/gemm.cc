#include "kernels/gemm.h"

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include <algorithm>
#include <cstddef>
#include <new>

#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/cpu/gemm_tiles-inl.h"
#include "kernels/cpu/work_list.h"

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {

void Gemm(ConstFloatMatrix input, const PackedMatrix& weights,
          const float* bias, FloatMatrix output, Workspace& workspace,
          ThreadPool& pool) {
  const PackedRowsLayout layout(input.rows, input.cols, kMaxTileRows);
  const size_t num_blocks = layout.rows().num_blocks();
  const size_t num_panels = weights.num_panels();
  const size_t num_threads = pool.num_threads();
  float* packed = workspace.Floats(kPackedInputSlot, layout.num_floats());

  const auto pack = [&](size_t b) HWY_ATTR {
    PackRowBlock([&](size_t r) { return input.row(r); }, layout, b, packed);
  };
  const size_t blocks_per_pack =
      BlocksPerPackTask(layout.num_cols(), layout.rows().size(0));
  size_t num_pack_tasks = DivideUp(num_blocks, blocks_per_pack);
  if (num_pack_tasks == 1) {  // not worth waking a thread
    for (size_t b = 0; b < num_blocks; ++b) pack(b);
    num_pack_tasks = 0;
  }

  const size_t panels_per_task = PanelsPerTask(num_panels, num_threads);
  const size_t num_chunks = DivideUp(num_panels, panels_per_task);
  // Few outputs and many rows: cut the rows too.
  const size_t blocks_per_group =
      num_threads == 1
          ? num_blocks
          : DivideUp(num_blocks, DivideUp(4 * num_threads, num_chunks));
  const size_t num_groups = DivideUp(num_blocks, blocks_per_group);
  const size_t scratch_floats =
      blocks_per_group * layout.rows().size(0) * kPanelCols;
  float* scratch = workspace.Floats(kScratchSlot, num_threads * scratch_floats);
  auto* packed_blocks =
      new (workspace.Array<TaskCounter>(kPlanSlot, 1)) TaskCounter();

  pool.ParallelFor(
      num_pack_tasks + num_chunks * num_groups,
      [&](size_t task, size_t worker) HWY_ATTR {
        if (task < num_pack_tasks) {
          const size_t begin = task * blocks_per_pack;
          const size_t end = std::min(begin + blocks_per_pack, num_blocks);
          for (size_t b = begin; b < end; ++b) pack(b);
          packed_blocks->Done();
          return;
        }
        packed_blocks->WaitFor(static_cast<uint32_t>(num_pack_tasks));
        const size_t chunk = (task - num_pack_tasks) / num_groups;
        const size_t group = (task - num_pack_tasks) % num_groups;
        const size_t first_panel = chunk * panels_per_task;
        const size_t first_block = group * blocks_per_group;
        MultiplyInto(packed, layout, first_block,
                     std::min(first_block + blocks_per_group, num_blocks),
                     weights, first_panel,
                     std::min(panels_per_task, num_panels - first_panel), bias,
                     output, scratch + worker * scratch_floats);
      });
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

HWY_EXPORT(Gemm);

void Gemm(ConstFloatMatrix input, const PackedMatrix& weights,
          const float* bias, FloatMatrix output, Workspace& workspace,
          ThreadPool& pool) {
  CHECK(!weights.empty());
  CHECK(!weights.is_gate_up());
  CHECK_EQ(input.cols, weights.k());
  CHECK_EQ(output.cols, weights.n());
  CHECK_EQ(output.rows, input.rows);
  if (input.rows == 0) return;
  HWY_DYNAMIC_DISPATCH(Gemm)(input, weights, bias, output, workspace, pool);
}

}  // namespace troupe
#endif  // HWY_ONCE
