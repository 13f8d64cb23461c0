#include "kernels/gemm.h"

#include <algorithm>
#include <cstddef>
#include <new>

#include "common/check.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/work_list.h"

namespace troupe {

void GemmWith(const GemmKernels& kernels, ConstFloatMatrix input,
              const PackedMatrix& weights, const float* bias,
              FloatMatrix output, Workspace& workspace, ThreadPool& pool) {
  const PackedRowsLayout layout = kernels.Layout(input.rows, input.cols);
  const size_t num_blocks = layout.rows().num_blocks();
  const size_t num_panels = weights.num_panels();
  const size_t num_threads = pool.num_threads();
  uint32_t* packed =
      workspace.Array<uint32_t>(kPackedInputSlot, layout.num_words());

  const auto pack = [&](size_t b) {
    PackRowBlock(
        kernels, [&](size_t r) { return input.row(r); }, layout, b, packed);
  };
  const size_t blocks_per_pack =
      BlocksPerPackTask(input.cols, layout.rows().size(0));
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
      blocks_per_group * layout.rows().size(0) * PackedMatrix::kPanelCols;
  float* scratch = workspace.Floats(kScratchSlot, num_threads * scratch_floats);
  auto* packed_blocks =
      new (workspace.Array<TaskCounter>(kPlanSlot, 1)) TaskCounter();

  pool.ParallelFor(
      num_pack_tasks + num_chunks * num_groups,
      [&](size_t task, size_t worker) {
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
        const size_t next_task = pool.LikelyNextTask(task);
        const size_t next_panel =
            (next_task - num_pack_tasks) / num_groups * panels_per_task;
        MultiplyInto(
            kernels, packed, layout, first_block,
            std::min(first_block + blocks_per_group, num_blocks), weights,
            first_panel, std::min(panels_per_task, num_panels - first_panel),
            bias, output, scratch + worker * scratch_floats,
            next_panel < num_panels ? weights.panel(next_panel) : nullptr);
      });
}

void Gemm(ConstFloatMatrix input, const PackedMatrix& weights,
          const float* bias, FloatMatrix output, Workspace& workspace,
          ThreadPool& pool) {
  CHECK(!weights.empty());
  CHECK(!weights.is_gate_up());
  CHECK_EQ(input.cols, weights.k());
  CHECK_EQ(output.cols, weights.n());
  CHECK_EQ(output.rows, input.rows);
  if (input.rows == 0) return;
  GemmWith(KernelsFor(weights), input, weights, bias, output, workspace, pool);
}

}  // namespace troupe
