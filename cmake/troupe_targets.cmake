# troupe_library, troupe_binary, troupe_test: one small target per idea.

add_library(troupe_flags INTERFACE)
target_include_directories(troupe_flags INTERFACE ${PROJECT_SOURCE_DIR})
# -ffp-contract=off: the exactness contract fixes where a multiply and an add
# are fused; the compiler must not decide.
target_compile_options(troupe_flags INTERFACE
  -Wall -Wextra $<$<CXX_COMPILER_ID:GNU>:-Wshadow=local> -Wno-unused-parameter -ffp-contract=off
  -fstack-protector-strong)
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(troupe_flags INTERFACE -Wthread-safety)
endif()
if(TROUPE_WERROR)
  target_compile_options(troupe_flags INTERFACE -Werror)
endif()
if(TROUPE_SANITIZE)
  target_compile_options(troupe_flags INTERFACE
    -fsanitize=${TROUPE_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(troupe_flags INTERFACE -fsanitize=${TROUPE_SANITIZE})
else()
  target_compile_definitions(troupe_flags INTERFACE
    $<$<CONFIG:Release>:_FORTIFY_SOURCE=2>)
endif()
target_compile_definitions(troupe_flags INTERFACE _GLIBCXX_ASSERTIONS)

# troupe_library(NAME SRCS a.cc... DEPS targets...)
function(troupe_library name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  if(A_SRCS)
    add_library(${name} STATIC ${A_SRCS})
    target_link_libraries(${name} PUBLIC troupe_flags ${A_DEPS})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE troupe_flags ${A_DEPS})
  endif()
endfunction()

# troupe_binary(NAME SRCS a.cc... DEPS targets...): lands in build/*/bin.
function(troupe_binary name)
  cmake_parse_arguments(A "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  target_link_libraries(${name} PRIVATE troupe_flags ${A_DEPS})
endfunction()

# troupe_test(NAME SRCS a_test.cc... DEPS targets... [TIMEOUT seconds]
#             [LABELS ...] [SERIAL])
# One ctest entry per test program. SERIAL: starts a cluster of its own, so it
# runs alone.
function(troupe_test name)
  if(NOT TROUPE_BUILD_TESTS)
    return()
  endif()
  cmake_parse_arguments(A "SERIAL" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${A_SRCS})
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_link_libraries(${name} PRIVATE troupe_flags ${A_DEPS}
    GTest::gmock GTest::gtest_main)
  if(TROUPE_SANITIZE STREQUAL "thread" AND NOT TROUPE_KERNELS_ONLY)
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/tsan_absl.cc)
    target_link_libraries(${name} PRIVATE absl::synchronization
      ${CMAKE_DL_LIBS})
  endif()
  target_compile_definitions(${name} PRIVATE
    TROUPE_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
    TROUPE_BINARY_DIR="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  add_test(NAME ${name} COMMAND ${name})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT}
    SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\] [0-9]+ tests?, listed below[^0-9]*\\[  PASSED  \\] 0 tests")
  if(A_LABELS)
    set_tests_properties(${name} PROPERTIES LABELS "${A_LABELS}")
  endif()
  if(A_SERIAL)
    set_tests_properties(${name} PROPERTIES RUN_SERIAL ON)
  endif()
endfunction()
