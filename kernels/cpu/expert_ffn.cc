#include "kernels/expert_ffn.h"

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/expert_ffn.cc"
#include "hwy/foreach_target.h"
// foreach_target.h stays before the rest.
#include <algorithm>
#include <cstddef>
#include <new>

#include "common/check.h"
#include "hwy/highway.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/work_list.h"

HWY_BEFORE_NAMESPACE();
namespace troupe::HWY_NAMESPACE {

inline constexpr size_t kPanelCols = PackedMatrix::kPanelCols;

// The copies of one expert and its tasks in the work list: first all experts'
// packing of input rows, then all experts' gate and up, then all down. The
// tasks of an expert wait for that expert alone, so that no thread idles
// between the phases.
struct Group {
  const GatedMlpWeights* weights;
  const GemmKernels* input_kernels;
  const GemmKernels* hidden_kernels;
  uint32_t* packed_input;   // [num_copies, hidden_size], packed
  uint32_t* packed_hidden;  // [num_copies, intermediate_size], packed
  size_t first_copy;
  size_t num_copies;
  size_t first_pack_task;
  size_t first_gate_up_task;
  size_t first_down_task;
  size_t num_pack_tasks;
  size_t num_gate_up_tasks;
  TaskCounter packed;
  TaskCounter activated;
};

class GroupedMlp {
 public:
  GroupedMlp(ConstFloatMatrix hidden_states, const uint32_t* row_of_copy,
             FloatMatrix output, Workspace& workspace, ThreadPool& pool)
      : hidden_states_(hidden_states),
        row_of_copy_(row_of_copy),
        output_(output),
        workspace_(workspace),
        pool_(pool),
        num_threads_(pool.num_threads()) {}

  // Experts without copies take no part.
  void Plan(std::span<const uint32_t> expert_offsets,
            std::span<const GatedMlpWeights* const> experts) {
    groups_ = workspace_.Array<Group>(kPlanSlot, experts.size());
    size_t max_copies = 0;
    size_t pair_multiple = 1;
    for (size_t e = 0; e < experts.size(); ++e) {
      const size_t num_copies = expert_offsets[e + 1] - expert_offsets[e];
      if (num_copies == 0) continue;
      Group* group = new (groups_ + num_groups_++) Group();
      group->weights = experts[e];
      group->input_kernels = &KernelsFor(experts[e]->gate_up);
      group->hidden_kernels = &KernelsFor(experts[e]->down);
      pair_multiple = std::max(pair_multiple,
                               group->hidden_kernels->k_per_step / kPanelCols);
      group->first_copy = expert_offsets[e];
      group->num_copies = num_copies;
      max_copies = std::max(max_copies, num_copies);
    }
    if (num_groups_ == 0) return;
    hidden_size_ = experts[0]->down.n();
    intermediate_size_ = experts[0]->down.k();
    num_pairs_ = experts[0]->gate_up.num_panels() / 2;
    num_down_panels_ = experts[0]->down.num_panels();
    // A task computes whole groups of what down reads.
    pairs_per_task_ = std::max(
        pair_multiple,
        DivideUp(PanelsPerTask(num_groups_ * num_pairs_ * 2, num_threads_), 2));
    down_panels_per_task_ =
        PanelsPerTask(num_groups_ * num_down_panels_, num_threads_);

    size_t task = 0;
    for (Group& group : groups()) {
      group.first_pack_task = task;
      group.num_pack_tasks = DivideUp(InputLayout(group).rows().num_blocks(),
                                      BlocksPerPack(group));
      task += group.num_pack_tasks;
    }
    first_gate_up_task_ = task;
    for (Group& group : groups()) {
      group.first_gate_up_task = task;
      group.num_gate_up_tasks = DivideUp(num_pairs_, pairs_per_task_);
      task += group.num_gate_up_tasks;
    }
    first_down_task_ = task;
    for (Group& group : groups()) {
      group.first_down_task = task;
      task += DivideUp(num_down_panels_, down_panels_per_task_);
    }
    num_tasks_ = task;

    size_t input_words = 0;
    size_t hidden_words = 0;
    for (const Group& group : groups()) {
      input_words += InputLayout(group).num_words();
      hidden_words += HiddenLayout(group).num_words();
    }
    uint32_t* input = workspace_.Array<uint32_t>(kPackedInputSlot, input_words);
    uint32_t* hidden =
        workspace_.Array<uint32_t>(kPackedHiddenSlot, hidden_words);
    for (Group& group : groups()) {
      group.packed_input = input;
      group.packed_hidden = hidden;
      input += InputLayout(group).num_words();
      hidden += HiddenLayout(group).num_words();
    }
    scratch_floats_ = max_copies * pairs_per_task_ * 2 * kPanelCols;
    scratch_ = workspace_.Floats(kScratchSlot, num_threads_ * scratch_floats_);
  }

  size_t num_tasks() const { return num_tasks_; }

  void RunTask(size_t task, size_t worker) {
    if (task < first_gate_up_task_) {
      Group& group = FindGroup(task, &Group::first_pack_task);
      Pack(group, task - group.first_pack_task);
      group.packed.Done();
    } else if (task < first_down_task_) {
      Group& group = FindGroup(task, &Group::first_gate_up_task);
      group.packed.WaitFor(static_cast<uint32_t>(group.num_pack_tasks));
      GateUp(group, task - group.first_gate_up_task, NextWeights(task),
             scratch_ + worker * scratch_floats_);
      group.activated.Done();
    } else {
      Group& group = FindGroup(task, &Group::first_down_task);
      group.activated.WaitFor(static_cast<uint32_t>(group.num_gate_up_tasks));
      Down(group, task - group.first_down_task, NextWeights(task),
           scratch_ + worker * scratch_floats_);
    }
  }

 private:
  std::span<Group> groups() { return {groups_, num_groups_}; }

  // The last group whose first task of this phase is not after `task`.
  Group& FindGroup(size_t task, size_t Group::*first_task) {
    Group* after = std::upper_bound(
        groups_, groups_ + num_groups_, task,
        [&](size_t t, const Group& group) { return t < group.*first_task; });
    return *(after - 1);
  }

  // What this thread is likely to read after `task`, or null.
  const uint8_t* NextWeights(size_t task) {
    const size_t next = pool_.LikelyNextTask(task);
    if (next < first_gate_up_task_ || next >= num_tasks_) return nullptr;
    if (next < first_down_task_) {
      const Group& group = FindGroup(next, &Group::first_gate_up_task);
      return group.weights->gate_up.panel(2 * pairs_per_task_ *
                                          (next - group.first_gate_up_task));
    }
    const Group& group = FindGroup(next, &Group::first_down_task);
    return group.weights->down.panel(down_panels_per_task_ *
                                     (next - group.first_down_task));
  }

  PackedRowsLayout InputLayout(const Group& group) const {
    return group.input_kernels->Layout(group.num_copies, hidden_size_);
  }
  PackedRowsLayout HiddenLayout(const Group& group) const {
    return group.hidden_kernels->Layout(group.num_copies, intermediate_size_);
  }
  size_t BlocksPerPack(const Group& group) const {
    return BlocksPerPackTask(hidden_size_, InputLayout(group).rows().size(0));
  }

  void Pack(const Group& group, size_t index) {
    const PackedRowsLayout layout = InputLayout(group);
    const size_t begin = index * BlocksPerPack(group);
    const size_t end =
        std::min(begin + BlocksPerPack(group), layout.rows().num_blocks());
    const auto row = [&](size_t r) {
      const size_t copy = group.first_copy + r;
      return hidden_states_.row(row_of_copy_ ? row_of_copy_[copy] : copy);
    };
    for (size_t b = begin; b < end; ++b) {
      PackRowBlock(*group.input_kernels, row, layout, b, group.packed_input);
    }
  }

  // Computes gate and up of a few pairs of panels side by side in scratch,
  // silu(gate) * up in place, and packs that for Down.
  void GateUp(const Group& group, size_t index, const uint8_t* next,
              float* scratch) {
    const size_t first_pair = index * pairs_per_task_;
    const size_t num_pairs = std::min(pairs_per_task_, num_pairs_ - first_pair);
    const size_t stride = num_pairs * 2 * kPanelCols;
    const PackedRowsLayout input = InputLayout(group);
    MultiplyPanels(*group.input_kernels, group.packed_input, input, 0,
                   input.rows().num_blocks(), group.weights->gate_up,
                   2 * first_pair, 2 * num_pairs, scratch, stride, next);
    for (size_t r = 0; r < group.num_copies; ++r) {
      Activate(scratch + r * stride, num_pairs);
    }
    const size_t first_col = first_pair * kPanelCols;
    PackHidden(group, first_col,
               std::min(num_pairs * kPanelCols, intermediate_size_ - first_col),
               scratch, stride);
  }

  // row [num_pairs][gate, up][32] -> silu(gate) * up [num_pairs][32], in place.
  static void Activate(float* row, size_t num_pairs) {
    for (size_t p = 0; p < num_pairs; ++p) {
      const float* gate = row + p * 2 * kPanelCols;
      const float* up = gate + kPanelCols;
      for (size_t i = 0; i < kPanelCols; i += kLanes) {
        const FloatVector product = hn::Mul(Silu(hn::LoadU(kFloats, gate + i)),
                                            hn::LoadU(kFloats, up + i));
        hn::StoreU(product, kFloats, row + p * kPanelCols + i);
      }
    }
  }

  // Packs columns [first_col, first_col + num_cols) of the group's activations,
  // `values` with `stride` from row to row, for Down.
  void PackHidden(const Group& group, size_t first_col, size_t num_cols,
                  const float* values, size_t stride) {
    const GemmKernels& kernels = *group.hidden_kernels;
    const PackedRowsLayout layout = HiddenLayout(group);
    const size_t first_step = first_col / kernels.k_per_step;
    const size_t last_step = (first_col + num_cols) / kernels.k_per_step;
    for (size_t b = 0; b < layout.rows().num_blocks(); ++b) {
      // A k block at a time.
      for (size_t step = first_step; step < last_step;) {
        const size_t block_end =
            (step / layout.steps_per_block() + 1) * layout.steps_per_block();
        const size_t end = std::min(last_step, block_end);
        const float* rows[kMaxBlockRows];
        for (size_t r = 0; r < layout.rows().size(b); ++r) {
          rows[r] = values + (layout.rows().begin(b) + r) * stride +
                    (step - first_step) * kernels.k_per_step;
        }
        kernels.pack_rows(rows, layout.rows().size(b),
                          (end - step) * kernels.k_per_step,
                          group.packed_hidden + layout.Offset(b, step));
        step = end;
      }
    }
  }

  void Down(const Group& group, size_t index, const uint8_t* next,
            float* scratch) {
    const PackedRowsLayout hidden = HiddenLayout(group);
    const size_t first_panel = index * down_panels_per_task_;
    MultiplyInto(
        *group.hidden_kernels, group.packed_hidden, hidden, 0,
        hidden.rows().num_blocks(), group.weights->down, first_panel,
        std::min(down_panels_per_task_, num_down_panels_ - first_panel),
        nullptr,
        output_.Rows(group.first_copy, group.first_copy + group.num_copies),
        scratch, next);
  }

  const ConstFloatMatrix hidden_states_;
  const uint32_t* const row_of_copy_;  // null: copy r is row r
  const FloatMatrix output_;
  Workspace& workspace_;
  const ThreadPool& pool_;
  const size_t num_threads_;

  Group* groups_ = nullptr;
  size_t num_groups_ = 0;
  size_t hidden_size_ = 0;
  size_t intermediate_size_ = 0;
  size_t num_pairs_ = 0;
  size_t num_down_panels_ = 0;
  size_t pairs_per_task_ = 0;
  size_t down_panels_per_task_ = 0;
  size_t first_gate_up_task_ = 0;
  size_t first_down_task_ = 0;
  size_t num_tasks_ = 0;
  float* scratch_ = nullptr;  // [num_threads][scratch_floats_]
  size_t scratch_floats_ = 0;
};

void RunGroupedMlp(ConstFloatMatrix hidden_states, const uint32_t* row_of_copy,
                   std::span<const uint32_t> expert_offsets,
                   std::span<const GatedMlpWeights* const> experts,
                   FloatMatrix output, Workspace& workspace, ThreadPool& pool) {
  GroupedMlp mlp(hidden_states, row_of_copy, output, workspace, pool);
  mlp.Plan(expert_offsets, experts);
  pool.ParallelFor(mlp.num_tasks(), [&](size_t task, size_t worker) HWY_ATTR {
    mlp.RunTask(task, worker);
  });
}

}  // namespace troupe::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace troupe {

HWY_EXPORT(RunGroupedMlp);

namespace {

void CheckShapes(const GatedMlpWeights& weights, size_t hidden_size,
                 size_t intermediate_size) {
  CHECK(weights.gate_up.is_gate_up());
  CHECK(!weights.down.is_gate_up());
  CHECK(!weights.gate_up.empty());
  CHECK(!weights.down.empty());
  CHECK_EQ(weights.gate_up.k(), hidden_size);
  CHECK_EQ(weights.gate_up.n(), intermediate_size);
  CHECK_EQ(weights.down.k(), intermediate_size);
  CHECK_EQ(weights.down.n(), hidden_size);
}

}  // namespace

void GroupedGatedMlp(ConstFloatMatrix hidden_states,
                     std::span<const uint32_t> row_of_copy,
                     std::span<const uint32_t> expert_offsets,
                     std::span<const GatedMlpWeights* const> experts,
                     FloatMatrix output, Workspace& workspace,
                     ThreadPool& pool) {
  CHECK_EQ(expert_offsets.size(), experts.size() + 1);
  CHECK_EQ(expert_offsets.front(), 0u);
  CHECK_EQ(expert_offsets.back(), row_of_copy.size());
  CHECK_EQ(output.rows, row_of_copy.size());
  CHECK_EQ(output.cols, hidden_states.cols);
  for (size_t e = 0; e < experts.size(); ++e) {
    CHECK_LE(expert_offsets[e], expert_offsets[e + 1]);
    CheckShapes(*experts[e], hidden_states.cols, experts[0]->down.k());
  }
  for (const uint32_t row : row_of_copy) CHECK_LT(row, hidden_states.rows);
  HWY_DYNAMIC_DISPATCH(RunGroupedMlp)
  (hidden_states, row_of_copy.data(), expert_offsets, experts, output,
   workspace, pool);
}

void GatedMlp(ConstFloatMatrix input, const GatedMlpWeights& weights,
              FloatMatrix output, Workspace& workspace, ThreadPool& pool) {
  CheckShapes(weights, input.cols, weights.down.k());
  CHECK_EQ(output.rows, input.rows);
  CHECK_EQ(output.cols, input.cols);
  const uint32_t expert_offsets[] = {0, static_cast<uint32_t>(input.rows)};
  const GatedMlpWeights* const experts[] = {&weights};
  HWY_DYNAMIC_DISPATCH(RunGroupedMlp)
  (input, nullptr, std::span(expert_offsets), std::span(experts), output,
   workspace, pool);
}

}  // namespace troupe
#endif  // HWY_ONCE
