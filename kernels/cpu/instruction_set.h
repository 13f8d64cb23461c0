// The instruction sets that are compiled in, for tests that run on each.
#ifndef TROUPE_KERNELS_CPU_INSTRUCTION_SET_H_
#define TROUPE_KERNELS_CPU_INSTRUCTION_SET_H_

#include <string>
#include <vector>

namespace troupe {

// Those that this processor runs, the best first; not empty.
std::vector<std::string> AvailableInstructionSets();

// From now on kernels use this one of the available sets; the empty name is
// the best. Not while a kernel runs.
void UseInstructionSetForTest(const std::string& name);

}  // namespace troupe

#endif  // TROUPE_KERNELS_CPU_INSTRUCTION_SET_H_
