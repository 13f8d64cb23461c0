// Points the wrong way on purpose: see tests/layering/CMakeLists.txt.
#include "model/config.h"
